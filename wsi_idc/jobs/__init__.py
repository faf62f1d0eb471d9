"""``wsi-idc job``, ``submit`` and ``status``: job files and SLURM."""
