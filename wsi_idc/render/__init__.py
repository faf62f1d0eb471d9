"""``wsi-idc render``: pictures of a map."""
