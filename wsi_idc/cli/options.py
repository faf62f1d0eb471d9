"""Options that several commands share."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wsi_idc.core.constants import MAX_SEED, NUM_RESAMPLES, PREDICT_BATCH_SIZE
from wsi_idc.training.config import TrainConfig

PATH = click.Path(path_type=Path)


class Number(click.FloatRange):
    """A number within a range; NaN, which no comparison finds outside, is none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number, or fail as click does."""
        found: float = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not a number", param, ctx)
        return found


CAM_CLASSES = ("non-idc", "idc")  # by index


def logging_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``-v`` and ``-q``, and set up the log before the command runs."""

    @click.option("-v", "--verbose", count=True, help="Say more on standard error.")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")
    @functools.wraps(command)
    def wrapped(verbose: int, quiet: bool, **arguments: Any) -> Any:
        from wsi_idc.core.progress import set_up_logging

        set_up_logging(-1 if quiet else verbose)
        return command(**arguments)

    return wrapped


def data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--data``."""
    return click.option(
        "--data",
        type=PATH,
        help="A pack, a patch tree or a zip of one.  [default: WSI_IDC_DATA, else data/]",
    )(command)


def checkpoint_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--checkpoint``; a command passes what it got to ``open_checkpoint``."""
    return click.option(
        "--checkpoint",
        type=PATH,
        help="A .pt file, a run directory, or 'bundled'.  [default: the newest finished run in "
        "runs/, else the bundled model]",
    )(command)


def predictor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--checkpoint`` (repeatable), ``--tta`` and ``--smooth``."""
    options = [
        click.option(
            "--checkpoint",
            "checkpoints",
            type=PATH,
            multiple=True,
            help="A .pt file, a run directory, or 'bundled'; several are an ensemble, whose "
            "probabilities are averaged.  [default: the newest finished run in runs/, else the "
            "bundled model]",
        ),
        click.option(
            "--tta",
            is_flag=True,
            help="See each patch in 8 flips and quarter turns and average; takes 8 times as long.",
        ),
        click.option(
            "--smooth",
            is_flag=True,
            help="Also smooth each patient's probabilities by their neighbours on the grid.",
        ),
    ]
    return _all_of(options, command)


def slide_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says how patches are cut from slides."""
    options = [
        click.option(
            "--mpp",
            type=Number(min=0, min_open=True),
            help="Microns per level-0 px of the slides.  [default: as the files state]",
        ),
        click.option("--mask", type=PATH, help="A PNG of where a slide has tissue: what is not 0."),
        click.option(
            "--min-tissue",
            type=Number(0, 1),
            default=0.1,
            show_default=True,
            help="Least share of tissue in a patch of a slide; 0 takes every patch, with --mask "
            "each that has any of it.",
        ),
        click.option(
            "--stride",
            type=click.IntRange(min=1),
            help="From one patch of a slide to the next, in px of the model, for patches that "
            "overlap.  [default: a whole patch]",
        ),
    ]
    return _all_of(options, command)


def cam_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says which CAM to compute."""
    options = [
        click.option(
            "--cam-method",
            type=click.Choice(["gradcam", "gradcam++", "smoothgradcam++", "xgradcam", "layercam"]),
            default="gradcam",
            show_default=True,
            help="gradcam comes with the forward pass where only pooling and one linear layer "
            "follow; the others go through torchcam.",
        ),
        click.option(
            "--cam-layer",
            help="Module that CAMs are taken from.  [default: the last with at least 4 x 4 cells]",
        ),
        click.option(
            "--cam-class",
            type=click.Choice(CAM_CLASSES),
            default=CAM_CLASSES[1],
            show_default=True,
            help="Class whose logit is explained.",
        ),
        click.option("--no-cam", is_flag=True, help="Compute no CAMs."),
    ]
    return _all_of(options, command)


def device_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--device``."""
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."
    )(command)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says how, and not what, to train."""
    options = [
        data_option,
        device_option,
        click.option(
            "--micro-batch",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Patches computed at once, more are accumulated into one step; 0: the batch, "
            "halved where memory runs out.",
        ),
        click.option("--compile", "compiled", is_flag=True, help="Train through torch.compile."),
        click.option(
            "--save-minutes",
            type=Number(min=0),
            default=5.0,
            show_default=True,
            help="Save so often within an epoch.",
        ),
        click.option(
            "--overwrite",
            is_flag=True,
            help="Train anew where there is a finished run, or one with other settings.",
        ),
    ]
    return _all_of(options, command)


def compute_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--device``, ``--precision`` and ``--batch-size`` for running a trained model."""
    options = [
        device_option,
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            default="auto",
            show_default=True,
            help="auto: bf16 on a GPU that has it, else fp32.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=PREDICT_BATCH_SIZE,
            show_default=True,
            help="Patches at a time.",
        ),
    ]
    return _all_of(options, command)


def split_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--split``: which patients to evaluate."""
    return click.option(
        "--split",
        type=click.Choice(["test", "val", "train", "unseen", "all"]),
        default="test",
        show_default=True,
        help="Of the checkpoint's split; unseen: neither its train nor its val patients.",
    )(command)


def resample_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--seed`` and ``--num-resamples`` of a bootstrap."""
    options = [
        click.option(
            "--num-resamples",
            type=click.IntRange(100, 100_000),
            default=NUM_RESAMPLES,
            show_default=True,
            help="Of the bootstrap over patients.",
        ),
        click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True),
    ]
    return _all_of(options, command)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of TrainConfig, spelled as the field."""
    options = []
    for option in fields(TrainConfig):
        choices = option.metadata["choices"]
        options.append(
            click.option(
                f"--{option.name.replace('_', '-')}",
                type=click.Choice(choices) if choices else type(option.default),
                default=option.default,
                show_default=True,
                help=option.metadata["help"],
            )
        )
    return _all_of(options, command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Say the result as JSON.")(command)


def is_given(ctx: click.Context, name: str) -> bool:
    """Return whether a parameter stands on the command line, whatever its value."""
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def changed(*names: str) -> list[str]:
    """Return those options of the running command that were given another value than their default.

    A job file gives each its default, which asks for nothing.
    """
    context = click.get_current_context()
    options = {option.name: option for option in context.command.params}
    return [
        options[name].opts[0]
        for name in names
        if is_given(context, name) and context.params[name] != options[name].default
    ]


def _all_of(options: Sequence[Any], command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        command = option(command)
    return command
