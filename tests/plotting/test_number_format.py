import math

from wsi_idc.plotting.number_format import (
    NONE,
    interval,
    number,
    percent,
    signed,
    signed_interval,
)

MINUS = "\N{MINUS SIGN}"


def test_numbers_are_formatted():
    assert number(0.12345) == "0.123"
    assert number(-0.5, digits=1) == f"{MINUS}0.5"
    assert signed(0.5) == "+0.500"
    assert signed(0.0) == "0.000"
    assert signed(-0.0004) == f"{MINUS}0.000"
    assert percent(0.28759) == "28.8 %"


def test_missing_values_are_dashes():
    for form in (number, signed, percent):
        assert form(math.nan) == form(None) == NONE


def test_intervals_are_formatted():
    assert interval(0.1, 0.25) == f"0.100{NONE}0.250"
    assert interval(-0.1, 0.25) == signed_interval(-0.1, 0.25) == f"{MINUS}0.100 to +0.250"
    assert interval(math.nan, math.nan) == signed_interval(None, None) == ""
