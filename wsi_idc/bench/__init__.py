"""Throughput of this machine, against the bare network and against a plain script."""
