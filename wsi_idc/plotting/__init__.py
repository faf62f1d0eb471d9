"""Tools for figures and pages: style, colors, raster images, HTML pages, number formats."""
