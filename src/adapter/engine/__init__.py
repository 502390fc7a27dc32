"""The engine that dspy.LM runs: lm15 requests in, lm15 responses out."""
