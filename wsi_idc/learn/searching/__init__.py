"""Search over settings of a training."""
