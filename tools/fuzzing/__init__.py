"""Kinds of files for tools/fuzz.py: valid files, their mutations, and functions that read them."""
