"""Requests in, tokens out. Knows nothing of DSPy."""
