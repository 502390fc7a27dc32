"""Models by name: files, memory, devices, and what is loaded. Knows nothing of DSPy."""
