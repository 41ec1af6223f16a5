"""Labels that do not run into each other: each takes the first free place beside its mark, or gives up."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LETTER, LINE = 6.7, 15.0  # the room that a letter and a line of 12 px text take
REACH = 8.0  # half the side of the box that a mark keeps free


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def holds(self, other: "Box") -> bool:
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True, slots=True)
class Label:
    """A text for the mark at `x`, `y`; `needed` ones come first and stand even where there is no room."""

    text: str
    style: str
    x: float
    y: float
    needed: bool = False


def arrange(labels: Sequence[Label], area: Box, taken: Sequence[Box] = ()) -> list[tuple[Label, Box]]:
    """Each label that found room inside `area`, with its place; none meets a mark, `taken`, or another."""
    full = [*taken, *(_around(label) for label in labels)]
    placed: list[tuple[Label, Box]] = []
    for label in sorted(labels, key=lambda label: not label.needed):
        choices = [box for box in _places(label) if area.holds(box)]
        free = (box for box in choices if not any(map(box.meets, full)))
        box = next(free, next(iter(choices), None) if label.needed else None)
        if box is not None:
            full.append(box)
            placed.append((label, box))
    return placed


def _around(label: Label) -> Box:
    return Box(label.x - REACH, label.y - REACH, label.x + REACH, label.y + REACH)


def _places(label: Label) -> Iterator[Box]:
    """Above the mark, below, right, left, then the four corners, then a line further above and below."""
    width, x, y = len(label.text) * LETTER, label.x, label.y
    right, left, centre = x + REACH + 2, x - REACH - 2 - width, x - width / 2
    middle, above, below = y - LINE / 2, y - REACH - LINE, y + REACH
    corners = ((right, above), (left, above), (right, below), (left, below))
    far = ((centre, above - LINE), (centre, below + LINE))
    for start, top in ((centre, above), (centre, below), (right, middle), (left, middle), *corners, *far):
        yield Box(start, top, start + width, top + LINE)
