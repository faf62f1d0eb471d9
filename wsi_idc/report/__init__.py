"""``wsi-idc report``: Bokeh pages of maps."""
