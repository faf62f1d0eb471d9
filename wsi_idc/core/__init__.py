"""Errors, atomic files, locks, HDF5 checks, TOML, progress, provenance, constants."""
