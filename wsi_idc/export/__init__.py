"""``wsi-idc export``: GeoJSON, OME-TIFF, CSV, PNG, WSInfer."""
