"""``wsi-idc train``: configuration, training loop, validation, run directory."""
