"""Figure style, colors, raster painting, HTML shell, number formats."""
