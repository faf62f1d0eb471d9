"""Whole-slide images: microns per pixel, tissue, patches at the resolution of a model."""
