"""Map invasive ductal carcinoma: probability maps and Grad-CAM mosaics. Research use only."""

__version__ = "0.1.0"

NOTICE = "Research use only, never a diagnosis."  # shown on pictures and pages
