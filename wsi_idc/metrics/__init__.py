"""Metrics of patch predictions and of patients, with bootstrap intervals."""
