"""``wsi-idc models``: list the networks that ``train`` knows."""

from dataclasses import asdict

import click

from wsi_idc.cli.options import output_options
from wsi_idc.cli.output import echo_note, echo_result


@click.command()
@click.argument("pattern", required=False)
@output_options
def models(pattern: str | None, as_json: bool) -> None:
    """List networks with size, CAM and weights.

    Without PATTERN, the command lists the usual networks. With PATTERN, it lists the networks of
    timm whose names match: for example 'vit_small*'. PATTERN may also be timm:NAME or
    hf-hub:OWNER/NAME. wsi-idc train takes these names, and all others of torchvision.

    \b
    Examples:
      wsi-idc models
      wsi-idc models 'convnext_*'
      wsi-idc models timm:vit_small_patch16_224.dino
    """
    from wsi_idc.models.catalog import describe_models

    described, refused = describe_models(pattern)
    width = max((len(model.name) for model in described), default=0)
    title = f"{'model':<{width}}  parameters  input   CAM      weights        licence"
    lines = [title] * bool(described)
    lines += [
        f"{model.name:<{width}}  {model.parameters / 1e6:8.2f} M  {model.input_px:3} px  "
        f"{model.cam_rows:2} x {model.cam_rows:<2}  {model.weights:<13}  {model.licence or '-'}"
        for model in described
    ]
    record = {"models": [asdict(model) for model in described], "refused": refused}
    echo_result(record, lines, as_json=as_json)
    if not as_json:
        for reason in refused.values():
            echo_note(f"not supported: {reason}")
