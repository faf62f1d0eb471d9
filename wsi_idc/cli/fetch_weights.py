"""``wsi-idc fetch-weights``."""

import click

from wsi_idc.cli.options import logging_options
from wsi_idc.cli.output import echo


@click.command("fetch-weights")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@logging_options
def fetch_weights(models: tuple[str, ...]) -> None:
    """Download ImageNet weights of MODELs.

    They go into torchvision's cache. A MODEL is resnet50 or any of torchvision's classifiers.

    Run it where there is internet; training downloads nothing. TORCH_HOME moves the cache.

    \b
    Example:
      wsi-idc fetch-weights resnet50 mobilenet_v3_small
    """
    from wsi_idc.models.pretrained import fetch_imagenet
    from wsi_idc.models.registry import architecture

    # A wrong name is found before the first download.
    for arch in [architecture(model) for model in models]:
        echo(str(fetch_imagenet(arch)))
