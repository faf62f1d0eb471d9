"""What the writer and the reader of a map file agree on."""

FORMAT = "wsi-idc-map"
FORMAT_VERSION = 1
NUM_CLASSES = 2
OPTIONAL_COLUMNS = ("uncertainty", "probability_smoothed")
