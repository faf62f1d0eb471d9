"""What the writer and the reader of a map file agree on."""

FORMAT = "wsi-idc-map"
FORMAT_VERSION = 1
NUM_CLASSES = 2
OPTIONAL_COLUMNS = ("uncertainty", "probability_smoothed")
# Of CAMs, which an early layer has as fine as the patches: more than these no reader takes.
MAX_CAM_SIDE = 256  # cells
MAX_CAM_BYTES = 2**32  # of all patches
