"""Models by the name of a repository on a hub that huggingface_hub speaks to.

What a hub answers is not trusted: names, sizes and contents are checked before they count.
"""
