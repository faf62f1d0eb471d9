"""``wsi-idc report``: HTML pages of maps, made with Bokeh."""
