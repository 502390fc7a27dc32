"""JSON Schemas and Python types as expressions of a grammar."""
