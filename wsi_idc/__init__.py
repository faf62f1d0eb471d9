"""Probability maps and Grad-CAM mosaics of invasive ductal carcinoma. Research use only."""

__version__ = "0.1.0"

NOTICE = "Research use only, never a diagnosis."  # on all that is made to be looked at
