"""``wsi-idc export``: GeoJSON, OME-TIFF, CSV or PNG of a map, and a model for WSInfer."""
