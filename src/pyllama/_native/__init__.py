"""The C boundary: cffi's binding of llama.h, and the guard shim. For pyllama's modules alone."""
