"""``wsi-idc view``: a local web server that shows slides with their maps at full resolution."""
