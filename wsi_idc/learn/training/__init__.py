"""Train a classifier: the loop, its steps, its state on disk."""
