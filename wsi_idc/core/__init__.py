"""Tools for all packages: errors, files, locks, HDF5, TOML, progress, provenance, constants."""
