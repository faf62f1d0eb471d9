"""Colors of labels, layers and figures."""

# Label -1 is unknown. The colors also differ for people who are color-blind, and in gray print.
LABEL_COLORS = {0: "#8fb7d9", 1: "#c2410c", -1: "#dedede"}
# Matplotlib colormap of each layer. All are perceptually uniform and suit color-blind readers.
COLORMAPS = {
    "probability": "viridis",
    "unsmoothed": "viridis",
    "smoothed": "viridis",
    "cam": "inferno",
    "uncertainty": "cividis",
    "novelty": "magma",
}
# Layers in which the opacity follows the value, so that tissue of low probability is visible.
SEE_THROUGH = ("probability", "unsmoothed", "smoothed", "cam")
INK = "#333333"
# Outlines of the regions called IDC, and of the tissue mask.
CALLED_COLOR = "#19c8b9"
MASK_COLOR = "#9be564"
# Colors of quality flags, in the order of the flags; they differ for color-blind readers too.
FLAG_COLORS = (
    "#0072b2",
    "#009e73",
    "#222222",
    "#f0e442",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#999999",
)
UNFLAGGED_COLOR = "#dedede"
# Color of each outcome code of a patch. Code 0 is an unknown label, or a cell without a patch.
OUTCOME_COLORS = {1: "#0b6fb8", 2: "#f0a202", 3: "#d6246e", 4: "#c9d1da"}
OUTCOME_NAMES = ("true pos.", "false pos.", "false neg.", "true neg.")
