"""Pure geometry of grids and regions."""
