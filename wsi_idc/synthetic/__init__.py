"""Synthetic data: draw a cohort of patches or a slide."""
