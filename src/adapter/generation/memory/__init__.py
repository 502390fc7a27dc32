"""Where the keys and values of requests are: KV caches, their slots, and the prefix cache."""
