"""Synthetic data: a cohort of patches, a slide, or a cohort of slides."""
