"""Metrics of patches and patients, with bootstrap intervals."""
