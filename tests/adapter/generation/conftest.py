"""Puts this folder's helpers within reach of the folders in it."""
