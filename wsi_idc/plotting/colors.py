"""What colours mean, in pictures, pages and exports alike; beside no drawing library."""

# -1 is unknown; told apart without red and green, and in grey.
LABEL_COLORS = {0: "#8fb7d9", 1: "#c2410c", -1: "#dedede"}

# matplotlib's names. Uniform to the eye, also to a colour-blind one.
COLORMAPS = {
    "probability": "viridis",
    "smoothed": "viridis",
    "cam": "inferno",
    "uncertainty": "cividis",
}

# Lines and marks of figures, and what stands back behind them.
ACCENT, OTHER, THIRD = "#2f6db3", "#c2410c", "#2a9d6f"
GREY, GRID = "#8a8a8a", "#e4e4e4"
