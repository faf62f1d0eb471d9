"""Fit the novelty model of the bundled model again, without training.

    python tools/bundle_novelty.py data/idc.h5

The script changes wsi_idc/models/bundled/idc.pt. The pack must have the train and val patients of
the model. It may have patches of these patients that were not used in the training.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from wsi_idc.data.pack import Pack
from wsi_idc.inference.novelty import fit_novelty
from wsi_idc.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_idc.models.checkpoint_files import bundled_checkpoint
from wsi_idc.runtime.device import select_device
from wsi_idc.training.setup import labeled_rows


def main(data: Path) -> None:
    """Fit the novelty model to the train and val patients of the bundled model's split."""
    path, pack = bundled_checkpoint(), Pack(data)
    checkpoint = load_checkpoint(path)
    train, val = (labeled_rows(pack, checkpoint.patients(role)) for role in ("train", "val"))
    classifier = checkpoint.build()
    novelty = fit_novelty(classifier, pack, train, val, device_config=select_device())
    save_checkpoint(path, replace(checkpoint, novelty=novelty))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    main(**vars(parser.parse_args()))
