"""Colors of labels, layers and figures."""

# -1 is unknown. The colors differ without red and green, and in gray.
LABEL_COLORS = {0: "#8fb7d9", 1: "#c2410c", -1: "#dedede"}
# Colormaps of matplotlib by layer. Perceptually uniform, for color-blind people too.
COLORMAPS = {
    "probability": "viridis",
    "smoothed": "viridis",
    "cam": "inferno",
    "uncertainty": "cividis",
}
INK = "#333333"
