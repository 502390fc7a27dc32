"""Expressions of a grammar, and their text in GBNF."""
