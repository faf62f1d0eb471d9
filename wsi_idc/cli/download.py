"""``wsi-idc download``."""

from pathlib import Path

import click

from wsi_idc.cli.options import json_option, logging_options
from wsi_idc.cli.output import echo, echo_json


@click.command()
@json_option
@logging_options
def download(as_json: bool) -> None:
    """Download the Kaggle data set.

    Some 3 GB, and as much again unpacked, through kagglehub: what is there already is not fetched
    again, and a download that was cut short goes on. It lies in kagglehub's cache, which
    KAGGLEHUB_CACHE moves; data/source.json remembers where, so that prepare finds it.

    \b
    Example:
      wsi-idc download && wsi-idc prepare
    """
    from wsi_idc.data.download import download as fetch
    from wsi_idc.data.open_data import DEFAULT_FOLDER

    path = fetch(Path(DEFAULT_FOLDER))
    if as_json:
        echo_json({"path": path})
        return
    echo(f"data set  {path}")
    echo("next      wsi-idc prepare")
