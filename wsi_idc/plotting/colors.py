"""Colors of labels, layers and figures."""

# Label -1 is unknown. The colors also differ for people who are color-blind, and in gray print.
LABEL_COLORS = {0: "#8fb7d9", 1: "#c2410c", -1: "#dedede"}
# Colormap of each layer, from matplotlib. All are perceptually uniform and fit color-blind people.
COLORMAPS = {
    "probability": "viridis",
    "smoothed": "viridis",
    "cam": "inferno",
    "uncertainty": "cividis",
}
INK = "#333333"
