"""Throughput of this machine, against the network alone and against a plain script."""
