"""The form of answers as grammars in GBNF, from JSON schemas, types and signatures."""
