"""Classifiers of patches, their checkpoints and their class activation maps."""
