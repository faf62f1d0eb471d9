"""``wsi-idc doctor``: checks of the machine and the installation."""
