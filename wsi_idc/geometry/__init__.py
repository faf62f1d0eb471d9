"""Grids of patches, and the connected regions of their cells."""
