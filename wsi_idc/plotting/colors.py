"""Colors of labels, layers and lines, the same in pictures, pages and exports."""

# -1 is unknown. The colors differ without red and green, and in gray.
LABEL_COLORS = {0: "#8fb7d9", 1: "#c2410c", -1: "#dedede"}

# Colormaps of matplotlib by layer. Perceptually uniform, for color-blind people too.
COLORMAPS = {
    "probability": "viridis",
    "smoothed": "viridis",
    "cam": "inferno",
    "uncertainty": "cividis",
}

# Lines and marks of figures, and the gray of lines behind them.
ACCENT, OTHER, THIRD = "#2f6db3", "#c2410c", "#2a9d6f"
GRAY, GRID = "#8a8a8a", "#e4e4e4"
