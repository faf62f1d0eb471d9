"""Probability maps and CAM mosaics: geometry, files, pictures."""
