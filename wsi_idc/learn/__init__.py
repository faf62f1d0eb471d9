"""Train, predict and evaluate."""
