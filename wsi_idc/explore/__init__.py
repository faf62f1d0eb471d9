"""``wsi-idc explore``: tables, quality checks and figures of a data set."""
