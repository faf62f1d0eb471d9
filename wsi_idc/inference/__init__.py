"""Inference: compute the calibrated probabilities of patches."""
