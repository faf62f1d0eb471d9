"""Decorators for options that several commands share."""

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wsi_idc.cli.config_file import config_lines
from wsi_idc.core.constants import MAX_SEED, NUM_RESAMPLES, PREDICT_BATCH_SIZE
from wsi_idc.training.config import TrainConfig

logger = logging.getLogger(__name__)
CAM_CLASSES = ("non-idc", "idc")  # the index of a name is its label
# Like ``click.option``, but the help text shows the default value.
with_default = functools.partial(click.option, show_default=True)


class _PathType(click.Path):
    """Type of an option or argument: a path. An empty text is an error, not the current folder."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Convert text to a path; raise click's usage error if the text is empty."""
        if value == "":
            self.fail("the path is empty; give a file or a folder", param, ctx)
        return super().convert(value, param, ctx)


PATH = _PathType(path_type=Path)


class Number(click.FloatRange):
    """Type of an option: a number in a range. NaN is an error, unlike in click.FloatRange."""

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Convert text to a number; raise click's usage error if the number is not allowed."""
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number", param, ctx)
        return number


def logging_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options ``-v`` and ``-q``; set up logging before the command runs."""

    @click.option("-v", "--verbose", count=True, help="Show more messages on standard error.")
    @click.option("-q", "--quiet", is_flag=True, help="Show only warnings and errors.")
    @functools.wraps(command)
    def wrapped(verbose: int, quiet: bool, **arguments: Any) -> Any:
        from wsi_idc.core.progress import set_up_logging

        set_up_logging(-1 if quiet else verbose)
        for line in config_lines(click.get_current_context()):
            logger.info("%s", line)
        return command(**arguments)

    return wrapped


def _block(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Combine options into one decorator that adds the options in the given order."""

    def add(command: Any) -> Any:
        return functools.reduce(lambda result, option: option(result), reversed(options), command)

    return add


json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
# Last decorator of each command that prints a result.
output_options = _block(json_option, logging_options)
data_option = click.option(
    "--data",
    type=PATH,
    help="Pack, or folder or zip file of patches.  [default: WSI_IDC_DATA, else data/]",
)
device_option = with_default("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps.")
threshold_option = click.option(
    "--threshold",
    type=Number(0, 1),
    help="Lowest probability at which a patch is called IDC.  [default: the map's threshold]",
)
# Commands that make maps, or compute areas and regions from maps.
exclude_flagged_option = click.option(
    "--exclude-flagged",
    is_flag=True,
    help="Leave patches with a quality flag (such as blur or pen) out of areas and regions; every "
    "patch stays in the map.",
)
# ``inputs.find_checkpoints`` converts the value of this option to paths.
checkpoint_option = click.option(
    "--checkpoint",
    type=PATH,
    help="A .pt file, a run directory, or 'bundled'.  [default: the run named in "
    "runs/default, else the bundled model]",
)
# ``inputs.find_checkpoints`` and ``inputs.open_predictor`` use the values of these options.
predictor_options = _block(
    click.option(
        "--checkpoint",
        "checkpoints",
        type=PATH,
        multiple=True,
        help="A .pt file, a run directory, or 'bundled'. Repeat the option to average several "
        "checkpoints.  [default: the run named in runs/default, else the bundled model]",
    ),
    click.option(
        "--tta",
        is_flag=True,
        help="Average over the 8 flips and rotations of each patch; this takes 8 times as long.",
    ),
)
# ``prepare --slides`` and ``view`` read annotations.
annotation_frame_option = with_default(
    "--annotation-frame",
    type=click.Choice(["auto", "level0", "qupath"]),
    default="auto",
    help="Origin of the coordinates in annotation files: corner of the complete slide (level0), or "
    "corner of the area that QuPath shows (qupath).",
)
# Settings for finding tissue: ``map`` and ``prepare --slides`` share them.
tissue_options = _block(
    with_default(
        "--mask-frame",
        type=click.Choice(["auto", "level0", "qupath"]),
        default="auto",
        help="Part of the slide that a mask shows: the complete slide (level0), or the scanned "
        "area that QuPath shows (qupath). auto chooses the part that has the same proportions as "
        "the mask. For outlines, auto chooses the part into which they fit.",
    ),
    with_default(
        "--min-tissue",
        type=Number(0, 1),
        default=0.1,
        help="Smallest fraction of tissue in a patch of a slide. 0 keeps every patch of the "
        "slide; with --mask, 0 keeps every patch that contains tissue.",
    ),
    with_default(
        "--tissue-threshold",
        type=Number(0, 255),
        default=5.0,
        help="A pixel is tissue if green is darker than red and blue by at least this number of "
        "gray levels. A smaller value also finds paler tissue.",
    ),
    with_default(
        "--min-piece-mm2",
        type=Number(min=0),
        default=0.004,
        help="Area of the smallest piece of tissue; smaller pieces count as dust.",
    ),
    with_default(
        "--min-hole-mm2",
        type=Number(min=0),
        default=0.004,
        help="Area of the smallest hole in tissue; smaller holes count as tissue.",
    ),
)
# Parameters of ``tissue_options``, and fields of ``SlideSettings``.
TISSUE_PARAMETERS = (
    *("mask_frame", "min_tissue", "tissue_threshold", "min_piece_mm2", "min_hole_mm2"),
)
slide_options = _block(
    click.option(
        "--mpp",
        type=Number(min=0, min_open=True),
        help="Microns per px of the slides at level 0.  [default: the value in the file]",
    ),
    click.option(
        "--mask",
        type=PATH,
        help="Tissue of one slide: a PNG in which pixels above 0 are tissue, or a GeoJSON file "
        "with outlines of tissue. In a --manifest, the column mask has a file for each slide.",
    ),
    tissue_options,
    click.option(
        "--stride",
        type=click.IntRange(min=1),
        help="Distance from the start of a patch to the start of the next, in px of a patch. "
        "Patches overlap if this distance is less than the patch size.  [default: the patch size]",
    ),
)
# Patients and slides: ``map`` and ``features`` share them; ``inputs.split_inputs`` uses the values.
input_options = _block(
    click.argument("files", nargs=-1, type=PATH, metavar="[PATIENT | FILE]..."),
    click.option(
        "--patient", "patients", multiple=True, help="Ids of patients, separated by commas."
    ),
    click.option("--patients-file", type=PATH, help="Text file with one patient id per line."),
    click.option("--all", "everyone", is_flag=True, help="Take all patients of the data."),
    click.option("--slide", "slides", multiple=True, type=PATH, help="Slide, or folder of slides."),
    click.option("--manifest", type=PATH, help="CSV file of slides: slide, patient, mpp, mask."),
    click.option(
        "--shard", metavar="I/N", help="Divide the work into N equal parts, and do only part I."
    ),
)
cam_options = _block(
    with_default(
        "--cam-method",
        type=click.Choice(["gradcam", "gradcam++", "smoothgradcam++", "xgradcam", "layercam"]),
        default="gradcam",
        help="Method of the CAMs. gradcam needs no backward pass if only pooling and one linear "
        "layer follow the CAM layer. The other methods use torchcam.",
    ),
    click.option(
        "--cam-layer",
        help="Module from whose output the CAMs are computed.  [default: the last module with an "
        "output of at least 4 rows and 4 columns]",
    ),
    with_default(
        "--cam-class",
        type=click.Choice(CAM_CLASSES),
        default=CAM_CLASSES[1],
        help="Class whose logit is explained.",
    ),
    click.option("--no-cam", is_flag=True, help="Compute no CAMs."),
)
# Options of a training that do not change its configuration; see ``config_options``.
run_options = _block(
    data_option,
    device_option,
    with_default(
        "--micro-batch",
        type=click.IntRange(min=0),
        default=0,
        help="Largest number of patches per forward pass; for a larger batch, gradients are "
        "accumulated. 0 starts with the full batch and halves it if the memory is too small.",
    ),
    click.option("--compile", "compiled", is_flag=True, help="Use torch.compile for training."),
    click.option(
        "--log",
        "log_to",
        metavar="NAMES",
        help="Loggers of the metrics, separated by commas: tensorboard, wandb, mlflow; or none.  "
        "[default: tensorboard]",
    ),
    with_default(
        "--save-minutes",
        type=Number(min=0),
        default=5.0,
        help="Minutes between two saves within an epoch.",
    ),
    click.option(
        "--store-encoder",
        is_flag=True,
        help="With --freeze all: store the weights of the encoder in the checkpoint, if their "
        "licence permits to share them. By default, the checkpoint contains only the head.",
    ),
    click.option(
        "--overwrite", is_flag=True, help="Replace a finished run, or a run with other settings."
    ),
)
# Options of the device and the batches of a trained model.
compute_options = _block(
    device_option,
    with_default(
        "--precision",
        type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
        default="auto",
        help="auto is bf16 on a GPU or CPU that computes in bf16, else fp32.",
    ),
    with_default(
        "--batch-size",
        type=click.IntRange(min=1),
        default=PREDICT_BATCH_SIZE,
        help="Patches per batch.",
    ),
)
split_option = with_default(
    "--split",
    type=click.Choice(["test", "val", "train", "unseen", "all"]),
    default="test",
    help="Role of the evaluated patients in the checkpoint's split. 'unseen' selects all patients "
    "except train and val. If the split has no test patients, or no patient of the data, 'test' is "
    "the same as 'unseen'.",
)
seed_option = with_default("--seed", type=click.IntRange(0, MAX_SEED), default=0)
resample_options = _block(
    with_default(
        "--num-resamples",
        type=click.IntRange(100, 100_000),
        default=NUM_RESAMPLES,
        help="Number of resamples of the bootstrap over patients.",
    ),
    seed_option,
)


class _NumberOrWord(click.ParamType):
    """Type of an option: a number of the type ``kind``, or one of ``words``."""

    name = "text"

    def __init__(self, kind: type, words: tuple[str, ...]) -> None:
        self.kind, self.words = click.types.convert_type(kind), words

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return the name of the type for the help text."""
        return "|".join((self.kind.name.upper(), *self.words))

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Convert text; raise click's usage error if the text is neither a number nor a word."""
        return value if value in self.words else self.kind.convert(value, param, ctx)


def _config_option(field: Field[Any]) -> Callable[[Any], Any]:
    choices, words, kind = field.metadata["choices"], field.metadata["words"], type(field.default)
    own_type = _NumberOrWord(kind, words) if words else kind
    return with_default(
        f"--{field.name.replace('_', '-')}",
        type=click.Choice(choices) if choices else own_type,
        default=field.default,
        help=field.metadata["help"],
    )


# One option for each field of TrainConfig, with the name of the field.
config_options = _block(*map(_config_option, fields(TrainConfig)))


def is_given(ctx: click.Context, name: str) -> bool:
    """Return whether the command line contains the parameter ``name``, with any value."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def changed(*names: str) -> list[str]:
    """Return the options that the user has set to values other than their defaults.

    ``names`` are the parameter names of these options. An option that is given with its default
    value is not returned, because job files contain all options with their defaults.
    """
    context = click.get_current_context()
    options = {option.name: option for option in context.command.params}
    return [
        options[name].opts[0]
        for name in names
        if is_given(context, name) and context.params[name] != options[name].default
    ]
