"""Read whole-slide images: resolution, tissue masks, and patches at a model's resolution."""
