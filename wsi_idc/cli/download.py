"""``wsi-idc download`` and ``fetch-weights``: download the data set or published weights."""

import os
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
    """Download the published weights of one or more models.

    A MODEL is resnet50 or another classifier of torchvision, a network of timm (timm:NAME) or a
    repository of the Hugging Face hub (hf-hub:OWNER/NAME). The weights are stored in the cache of
    torchvision or of the hub; the environment variables TORCH_HOME and HF_HOME set their folders.
    Run this command before the training, on a machine with internet access: wsi-idc train downloads
    nothing. Some repositories need your login: run hf auth login first.

    \b
    Examples:
      wsi-idc fetch-weights resnet50 mobilenet_v3_small
      wsi-idc fetch-weights timm:convnext_nano.in12k hf-hub:MahmoodLab/UNI2-h
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "0")  # wsi_idc.models.timm_models sets it to 1

    from wsi_idc.models.pretrained import fetch_imagenet
    from wsi_idc.models.registry import architecture

    # Look up all models before the first download: a wrong name raises an error here.
    for arch in [architecture(model) for model in models]:
        echo(fetch_imagenet(arch))
