"""DSPy signatures as prompts and grammars, and answers as their fields: the DSPy adapters."""
