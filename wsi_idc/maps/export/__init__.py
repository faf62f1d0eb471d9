"""Turn a map into the files other tools read: GeoJSON, OME-TIFF, CSV, PNG."""
