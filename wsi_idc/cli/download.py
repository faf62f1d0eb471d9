"""``wsi-idc download`` and ``fetch-weights``: download the data set or ImageNet weights."""

from pathlib import Path

import click

from wsi_idc.cli.options import logging_options, output_options
from wsi_idc.cli.output import echo, echo_result


@click.command()
@output_options
def download(as_json: bool) -> None:
    """Download the Kaggle data set.

    The download is about 3 GB, and the unpacked files need another 3 GB. Existing files are not
    downloaded again, and an interrupted download resumes. The files are in the cache of kagglehub;
    the environment variable KAGGLEHUB_CACHE sets the folder of this cache. The command writes the
    path of the data set into data/source.json for wsi-idc prepare.

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
    """Download the ImageNet weights of one or more models.

    A MODEL is resnet50 or another classifier of torchvision. The weights are stored in the cache of
    torchvision; the environment variable TORCH_HOME sets the folder of this cache. Run this command
    before the training, on a machine with internet access: wsi-idc train downloads nothing.

    \b
    Example:
      wsi-idc fetch-weights resnet50 mobilenet_v3_small
    """
    from wsi_idc.models.pretrained import fetch_imagenet
    from wsi_idc.models.registry import architecture

    # Look up all models before the first download: a wrong name raises an error here.
    for arch in [architecture(model) for model in models]:
        echo(fetch_imagenet(arch))
