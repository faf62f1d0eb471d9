"""``wsi-idc doctor``: check the machine and the installation."""
