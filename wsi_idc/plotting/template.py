"""Templates that escape whatever they are given, and what every page has."""

from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

# The browser itself lets no request leave the page. Bokeh makes functions of CustomJS: eval.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'{eval}; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
)
POLICY = _POLICY.format(eval="")
POLICY_WITH_EVAL = _POLICY.format(eval=" 'unsafe-eval'")


def template(name: str) -> Template:
    """Return one of the package's templates; every value in it is escaped."""
    environment = Environment(
        loader=PackageLoader("wsi_idc.report", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template(name)


def read_text(name: str) -> str:
    """Return a style or script of the package."""
    return resources.files("wsi_idc.report").joinpath(name).read_text(encoding="utf-8")
