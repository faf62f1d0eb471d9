"""Parts of tools/fuzz.py: mutations of files, and the readers of each kind of file."""
