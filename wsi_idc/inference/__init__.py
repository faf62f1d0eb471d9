"""From patches to calibrated probabilities."""
