"""Colors of labels, layers and figures."""

# Label -1 is unknown. The colors also differ for people who are color-blind, and in gray print.
LABEL_COLORS = {0: "#8fb7d9", 1: "#c2410c", -1: "#dedede"}
# Matplotlib colormap of each layer. All are perceptually uniform and suit color-blind readers.
COLORMAPS = {
    "probability": "viridis",
    "smoothed": "viridis",
    "cam": "inferno",
    "uncertainty": "cividis",
}
INK = "#333333"
