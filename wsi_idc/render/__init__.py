"""``wsi-idc render``: draw maps as PNG and PDF pictures."""
