"""Probability maps and Grad-CAM mosaics of invasive ductal carcinoma. Research use only."""

__version__ = "0.1.0"
