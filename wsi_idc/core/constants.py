"""Constants that several packages share, and the table of metrics; without heavy imports."""

from pathlib import Path

from wsi_idc.core.metric_table import TITLES

PATCH_PX = 50
CLASS_NAMES = ("non-IDC", "IDC")
NUM_CLASSES = len(CLASS_NAMES)
IDC = 1  # label of IDC, and index of its class
ROLES = ("train", "val", "test")  # of a patient in a run
NO_ROLE = "in no split"
MAX_SEED = 2**32 - 1
DEFAULT_RUNS = Path("runs")
DEFAULT_MAPS = Path("maps")
DEFAULT_REPORT = Path("report")
PREDICT_BATCH_SIZE = 64
NUM_RESAMPLES = 2000  # of a bootstrap over patients
# A file with values outside these limits is damaged or forged; some would overflow divisions.
POSSIBLE_MPP = (1e-3, 100.0)
POSSIBLE_TEMPERATURE = (1e-3, 1e3)  # training ends within 0.05 and 20
TITLES |= {"dice": "Dice", "area_bias": "Area bias"}
