"""The ``pyllama`` command: one module for each group of commands, and app for all of them.

Heavy packages are imported where they are used, so that --help answers at once.
"""
