"""``wsi-idc demo``: run every step on synthetic tissue."""

from pathlib import Path

import click

from wsi_idc.cli.options import PATH, logging_options, seed_option, with_default
from wsi_idc.cli.output import echo
from wsi_idc.core.text import count_patches


@click.command()
@with_default("--out", type=PATH, default=Path("wsi-idc-demo"))
@seed_option
@logging_options
def demo(out: Path, seed: int) -> None:
    """Run every step on synthetic tissue.

    The steps are: draw, prepare, train, eval, map, render, report. They take half a minute on two
    free cores. After a stop, the same command continues with the remaining steps.

    \b
    Example:
      wsi-idc demo --out /tmp/demo
    """
    from wsi_idc.demo import run_demo
    from wsi_idc.runtime.signals import stop_requests

    with stop_requests() as stop:
        result = run_demo(out, seed=seed, stop=stop)
    evaluation = result.evaluation
    metrics, (low, high) = evaluation.final.metrics, evaluation.final.intervals["auc"]
    unseen = count_patches(evaluation.num_patches, evaluation.num_patients)
    text = f"""
Done. On {unseen} that the model had not seen:
AUC {metrics["auc"]:.3f} [{low:.3f}, {high:.3f}], F1 {metrics["f1"]:.3f}
at the threshold {evaluation.final.threshold:.3f}.
The tissue is synthetic, so these numbers are not valid for real tissue.

  pack        {result.pack}
  model       {result.checkpoint}
  evaluation  {result.evaluation_folder}/report.html
  maps        {result.maps}/*.h5, one for each patient
  pictures    {result.maps}/*.png
  pages       {result.report}

With patches of your own (PATIENT/CLASS/PATIENT_idx5_xX_yY_classC.png):
  wsi-idc prepare TREE
  wsi-idc train    (optional: without it, map uses the bundled model)
  wsi-idc map --all
  wsi-idc report
Research use only: no output of this program is a diagnosis."""
    for line in text.splitlines():
        echo(line)
