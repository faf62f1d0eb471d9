"""Patches of a data set, packs (HDF5 files with all patches), and splits of the patients."""
