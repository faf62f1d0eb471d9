"""Code of ``wsi-idc eval`` and ``wsi-idc compare``: evaluate, compare, rank, write pages."""
