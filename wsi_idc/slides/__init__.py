"""Read real slides: microns per pixel, tissue, patches at the resolution of a model."""
