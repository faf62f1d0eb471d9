"""``wsi-idc eval``."""

from pathlib import Path

import click

from wsi_idc.cli.options import (
    PATH,
    checkpoint_option,
    compute_options,
    data_option,
    json_option,
    logging_options,
    open_checkpoint,
    say,
    say_json,
    say_rows,
)
from wsi_idc.config import MAX_SEED


@click.command("eval")
@checkpoint_option
@data_option
@click.option(
    "--split",
    type=click.Choice(["test", "val", "train", "unseen", "all"]),
    default="test",
    show_default=True,
    help="Of the checkpoint's split; unseen: neither its train nor its val patients.",
)
@click.option("--out", type=PATH, help="[default: eval-SPLIT in the run, or eval/bundled-SPLIT]")
@click.option("--allow-seen", is_flag=True, help="Also on patients that it was trained on.")
@click.option("--seed", type=click.IntRange(0, MAX_SEED), default=0, show_default=True)
@compute_options
@json_option
@logging_options
def eval_(
    checkpoint: Path | None,
    data: Path | None,
    split: str,
    out: Path | None,
    allow_seen: bool,
    seed: int,
    device: str,
    precision: str,
    batch_size: int,
    as_json: bool,
) -> None:
    """Measure a checkpoint on unseen patients.

    Intervals are 95 %, by bootstrap over patients. Writes metrics.json, patients.csv and
    predictions.csv.

    \b
    Examples:
      wsi-idc eval
      wsi-idc eval --checkpoint runs/mine --split val --json
    """
    from wsi_idc.data.source import open_data
    from wsi_idc.learn.evaluate import choose_patients, evaluate, write_evaluation
    from wsi_idc.models.checkpoint import bundled_checkpoint
    from wsi_idc.models.device import choose_compute

    compute = choose_compute(device, precision)
    loaded = open_checkpoint(checkpoint)
    pack = open_data(data)
    patients = choose_patients(loaded, pack, split, allow_seen=allow_seen)
    evaluation = evaluate(
        loaded,
        pack,
        patients,
        split=split,
        compute=compute,
        batch_size=batch_size,
        seed=seed,
    )
    assert loaded.source is not None
    bundled = loaded.source == bundled_checkpoint()
    beside = loaded.source.parent / f"eval-{split}"
    folder = out or (Path("eval", f"bundled-{split}") if bundled else beside)
    write_evaluation(evaluation, folder)
    if as_json:
        say_json({**evaluation.as_dict(), "out": folder})
        return
    counts = evaluation.confusion
    say(
        f"{split}: {evaluation.num_patches} patches of {evaluation.num_patients} patients, "
        f"threshold {evaluation.threshold:.3f}"
    )
    say_rows((name, _with_interval(evaluation, name)) for name in evaluation.metrics)
    say("confusion     called non-IDC  called IDC")
    say(f"  non-IDC     {counts.true_negative:14d}  {counts.false_positive:10d}")
    say(f"  IDC         {counts.false_negative:14d}  {counts.true_positive:10d}")
    if evaluation.num_unknown:
        say(f"{evaluation.num_unknown} patches of unknown label left out")
    one_class = int(evaluation.patients["auc"].isna().sum())
    if one_class:
        say(f"{one_class} patients have one class only, so no AUC of their own")
    say(f"written to {folder}")


def _with_interval(evaluation: object, name: str) -> str:
    value = evaluation.metrics[name]  # type: ignore[attr-defined]
    interval = evaluation.intervals.get(name)  # type: ignore[attr-defined]
    return f"{value:.4f}" + (f"  [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")
