"""What an answer may look like, as grammars in GBNF: from JSON schemas, types and signatures."""
