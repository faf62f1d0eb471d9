"""Networks that classify patches, their checkpoints and their class activation maps."""
