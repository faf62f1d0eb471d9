"""``wsi-idc features``: features of patches for other programs, one file for each slide."""
