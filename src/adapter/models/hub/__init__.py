"""Models by the name of a repository on a hub that huggingface_hub can use.

A hub's answers are untrusted: names, sizes and contents are checked before they are used.
"""
