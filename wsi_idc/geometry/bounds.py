"""The scanned area of a slide."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """Rectangle of a slide that was scanned; the rest of the glass has no pixels.

    QuPath shows only this rectangle, and counts pixels from its top left corner.

    Attributes:
        x, y: Top left corner in level-0 px of the complete glass.
        width, height: Size in level-0 px.
    """

    x: int
    y: int
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height} px at x {self.x}, y {self.y}"
