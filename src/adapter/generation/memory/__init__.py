"""The KV caches of requests, their slots, and the prefix cache."""
