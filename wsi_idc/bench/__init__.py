"""Benchmarks: speed of a command, of the bare network and of a plain script."""
