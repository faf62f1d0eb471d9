"""The scanned area of a slide."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """The scanned rectangle of a slide; the rest of the glass has no pixels.

    QuPath shows only this rectangle. Its top left corner is (0, 0) in QuPath.

    Attributes:
        x, y: Top left corner of the rectangle, in level-0 px of the complete glass.
        width, height: Size of the rectangle in level-0 px.
    """

    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height} px at x {self.x}, y {self.y}"
