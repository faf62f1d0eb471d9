"""Patches of a data set; a pack is an HDF5 file with all patches, and a split is by patient."""
