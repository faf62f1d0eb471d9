"""Number formats of figures and pages."""

import math

NONE = "\N{EN DASH}"


def number(value: float | None, *, digits: int = 3) -> str:
    """Format a number with ``digits`` decimal places. None and NaN become a dash."""
    return NONE if _is_none(value) else f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, *, digits: int = 3) -> str:
    """Format a difference with its sign. None and NaN become a dash."""
    if value == 0:
        return number(value, digits=digits)
    return NONE if _is_none(value) else f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(value: float | None) -> str:
    """Format a fraction in percent. None and NaN become a dash."""
    return NONE if _is_none(value) else f"{100 * value:.1f} %"  # type: ignore[operator]


def area(value: float) -> str:
    """Format an area in mm² with two decimal places."""
    return f"{value:,.2f}"


def interval(low: float | None, high: float | None, *, digits: int = 3) -> str:
    """Format an interval. If ``low`` or ``high`` has no value, return ""."""
    if _is_none(low) or _is_none(high):
        return ""
    if low < 0:  # type: ignore[operator]
        return signed_interval(low, high, digits=digits)
    return f"{number(low, digits=digits)}\N{EN DASH}{number(high, digits=digits)}"


def signed_interval(low: float | None, high: float | None, *, digits: int = 3) -> str:
    """Format an interval of a difference. If ``low`` or ``high`` has no value, return ""."""
    if _is_none(low) or _is_none(high):
        return ""
    return f"{signed(low, digits=digits)} to {signed(high, digits=digits)}"


def _is_none(value: float | None) -> bool:
    return value is None or math.isnan(value)
