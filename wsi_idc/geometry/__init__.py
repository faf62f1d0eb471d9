"""Grids and regions: numbers in, numbers out."""
