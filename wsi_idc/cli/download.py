"""``wsi-idc download`` and ``wsi-idc fetch-weights``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsi_idc.cli.options import (
    logging_options,
    output_options,
)
from wsi_idc.cli.output import echo, echo_result

if TYPE_CHECKING:
    pass


@click.command()
@output_options
def download(as_json: bool) -> None:
    """Download the Kaggle data set.

    About 3 GB, and as much again unpacked, through kagglehub. Files that are there are not
    downloaded again, and an interrupted download resumes. The files are in kagglehub's cache, which
    KAGGLEHUB_CACHE moves; data/source.json holds its path for wsi-idc prepare.

    \b
    Example:
      wsi-idc download && wsi-idc prepare
    """
    from wsi_idc.data.download import download as download_data
    from wsi_idc.data.open_data import DEFAULT_FOLDER

    path = download_data(Path(DEFAULT_FOLDER))
    lines = (f"data set  {path}", "next      wsi-idc prepare")
    echo_result({"path": path}, lines, as_json=as_json)


@click.command("fetch-weights")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@logging_options
def fetch_weights(models: tuple[str, ...]) -> None:
    """Download ImageNet weights of MODELs.

    They are stored in torchvision's cache, which TORCH_HOME moves. A MODEL is resnet50 or another
    classifier of torchvision. Run it where there is internet; training downloads nothing.

    \b
    Example:
      wsi-idc fetch-weights resnet50 mobilenet_v3_small
    """
    from wsi_idc.models.pretrained import fetch_imagenet
    from wsi_idc.models.registry import architecture

    # The list is complete before the first download: a wrong name stops the command here.
    for arch in [architecture(model) for model in models]:
        echo(fetch_imagenet(arch))
