"""``wsi-idc job``, ``submit`` and ``status``: run job files on this machine or on SLURM."""
