"""Constants that several packages share; this module imports no large library."""

from pathlib import Path

from wsi_idc.core.metric_table import TITLES

PATCH_PX = 50
CLASS_NAMES = ("non-IDC", "IDC")
NUM_CLASSES = len(CLASS_NAMES)
IDC = 1  # label of an IDC patch, and index of the class IDC
ROLES = ("train", "val", "test")  # roles that a patient can have in a run
NO_ROLE = "in no split"
MAX_SEED = 2**32 - 1
INTERPOLATIONS = ("bilinear", "bicubic")  # ways to resize a patch
DEFAULT_RUNS = Path("runs")
DEFAULT_MAPS = Path("maps")
DEFAULT_REPORT = Path("report")
DEFAULT_EVALUATIONS = Path("eval")  # evaluations that are not in the folder of a run
EVALUATION_PAGE = "report.html"
METRICS_JSON = "metrics.json"  # file with the results of an evaluation
SHORT_SHA = 12  # number of digits of a shortened SHA-256
PREDICT_BATCH_SIZE = 64
NUM_RESAMPLES = 2000  # number of resamples of a bootstrap over patients
NOVEL_PERCENTILE = 0.99  # a patch is called novel if its novelty (0..1) is larger
# Limits of numbers in files. A number outside its limits comes from a damaged or forged file.
POSSIBLE_MPP = (1e-3, 100.0)
POSSIBLE_TEMPERATURE = (1e-3, 1e3)  # training chooses a temperature between 0.05 and 20
# Titles of the metrics that are computed only per patient.
TITLES |= {"dice": "Dice", "area_bias": "Area bias"}
