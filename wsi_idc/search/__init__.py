"""``wsi-idc search``: search for hyper-parameters; each trial is a training."""
