"""``wsi-idc features``: write the features of patches of patients or slides."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsi_idc.cli.config_file import config_option
from wsi_idc.cli.inputs import check_inputs, find_checkpoints, open_source, split_inputs
from wsi_idc.cli.options import (
    PATH,
    Number,
    changed,
    checkpoint_option,
    compute_options,
    data_option,
    input_options,
    output_options,
    slide_options,
    with_default,
)
from wsi_idc.cli.output import echo_note, echo_result, raise_if_any
from wsi_idc.core.text import count, shorten_list

if TYPE_CHECKING:
    from wsi_idc.data.pack import Pack
    from wsi_idc.features.encoder import Encoder
    from wsi_idc.features.extract import FeatureReport

logger = logging.getLogger(__name__)


@click.command()
@input_options
@click.option(
    "--model",
    help="Encoder with its initial weights: resnet50, timm:NAME, hf-hub:OWNER/NAME, or another "
    "name that wsi-idc train takes. Without this option, --checkpoint is the encoder.",
)
@with_default(
    "--weights",
    default="auto",
    help="Weights of --model: auto (the published weights of the model), or a file or folder.",
)
@with_default(
    "--input-size",
    type=click.IntRange(0, 1024),
    default=0,
    help="Side in px to which patches are resized for --model; 0: usual size of the model.",
)
@click.option(
    "--patch-px",
    type=click.IntRange(8, 4096),
    help="Side in px of the patches of slides, for --model.  [default: the input size]",
)
@with_default(
    "--patch-mpp",
    type=Number(min=0, min_open=True),
    default=0.5,
    help="Microns per px of the patches of slides, for --model. 0.5 is a magnification of 20x.",
)
@checkpoint_option
@data_option
@with_default("--out", type=PATH, default=Path("features"), help="Folder of the features.")
@slide_options
@click.option("--pt", "with_pt", is_flag=True, help="Also write pt_files/NAME.pt, as CLAM does.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
@compute_options
@config_option
@output_options
def features(
    files: tuple[Path, ...],
    patients: tuple[str, ...],
    slides: tuple[Path, ...],
    manifest: Path | None,
    model: str | None,
    checkpoint: Path | None,
    device: str,
    precision: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Write features of patches for other programs.

    The features of a patch are the input of the last layer of a network, after its pooling. For
    each patient or slide, the command writes one HDF5 file with the datasets features (N, D) and
    coords (N, 2). Programs for multiple-instance learning read this layout, such as CLAM and
    TRIDENT. The arguments name patients or slides, as those of wsi-idc map do.

    An existing file of the same encoder, settings and data is kept. With --overwrite, any other
    existing file is replaced. After a stop (exit code 75) the same command continues with the
    remaining files.

    \b
    Examples:
      wsi-idc features --all --model timm:convnext_nano.in12k
      wsi-idc features scans/ --model hf-hub:MahmoodLab/UNI2-h --pt
      wsi-idc features 10253 --checkpoint runs/mine
    """
    patients, slides = split_inputs(files, patients, slides)
    check_inputs(patients, slides)
    _check_usage(for_slides=bool(slides or manifest))
    paths = [] if model else find_checkpoints([checkpoint] if checkpoint else [])
    source = open_source(patients, slides)

    from wsi_idc.features.extract import FeatureExtraction
    from wsi_idc.maps.from_pack import PackSource
    from wsi_idc.runtime.device import select_device
    from wsi_idc.runtime.signals import stop_requests

    device_config = select_device(device, precision)
    pack = source.pack if isinstance(source, PackSource) else None
    encoder = _pretrained(model, pack, options) if model else _of_checkpoint(paths[0], pack)
    size = count(encoder.num_features, "feature")
    logger.info("encoder: %s, %s; device: %s", encoder.name, size, device_config)
    # A signal before this line stops the command at once. In this block, files are completed first.
    with stop_requests() as stop:
        settings = {name: options[name] for name in ("out", "batch_size", "with_pt", "overwrite")}
        report = FeatureExtraction(encoder, device_config, stop=stop, **settings).run(source)
    record = {**vars(report), "encoder": encoder.name, "num_features": encoder.num_features}
    echo_result(record, _report_lines(report, encoder), as_json=as_json)
    for name, reason in report.failed.items() if not as_json else ():
        echo_note(f"no features of {name}: {reason}")
    num_all = len(report.failed) + len(report.made) + len(report.kept)
    raise_if_any(report.failed, num_all, f"files were not written: {shorten_list(report.failed)}")


def _check_usage(*, for_slides: bool) -> None:
    """Raise UsageError if an option would have no effect."""
    given = click.get_current_context().params
    if given["model"] and given["checkpoint"]:
        raise click.UsageError("give --model or --checkpoint, not both")
    of_patches = changed("patch_px", "patch_mpp")
    if not given["model"] and (unused := [*changed("weights", "input_size"), *of_patches]):
        raise click.UsageError(f"{', '.join(unused)} needs --model")
    if not for_slides and of_patches:
        raise click.UsageError(
            f"{', '.join(of_patches)} has no effect on a pack: its patches are already cut."
        )


def _pretrained(model: str, pack: "Pack | None", given: Mapping[str, Any]) -> "Encoder":
    from wsi_idc.features.encoder import pretrained_encoder

    patch_px, mpp = given["patch_px"], given["patch_mpp"]
    if pack is not None:
        patch_px, mpp = pack.info.patch_px, pack.info.mpp
    return pretrained_encoder(
        model, given["weights"], input_px=given["input_size"], patch_px=patch_px, mpp=mpp
    )


def _of_checkpoint(path: Path, pack: "Pack | None") -> "Encoder":
    from wsi_idc.features.encoder import encoder_of_checkpoint
    from wsi_idc.models.checkpoint import load_finished_checkpoint

    checkpoint = load_finished_checkpoint(path)
    if pack is not None:
        from wsi_idc.inference.predictor import Predictor

        Predictor((checkpoint,)).validate_input(pack)
    return encoder_of_checkpoint(checkpoint)


def _report_lines(report: "FeatureReport", encoder: "Encoder") -> Iterator[str]:
    for name, path in report.made.items():
        patches = count(report.patches[name], "patch", "patches")
        yield f"{path}  {patches}, {encoder.num_features} features"
    if report.kept:
        same = "because encoder, settings and data are the same"
        yield f"{len(report.kept)} kept, {same}: {shorten_list(report.kept)}"
    if not (report.made or report.failed):
        yield "nothing to compute"
