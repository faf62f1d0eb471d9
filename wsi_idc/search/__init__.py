"""``wsi-idc search``: hyper-parameter search over trainings."""
