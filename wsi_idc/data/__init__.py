"""Patches of a data set: download, check, pack, read, split and augment them."""
