"""What an executable takes: its inputs by name, kind and shape, and how a request is fitted to them."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pareflow.errors import BadOutputError, InputError, PareflowError
from pareflow.workload import Arrays

Run = Callable[[Arrays], Arrays]
SHOWN = 3
"""Of the shapes that an output has, where it may have one alone."""


@dataclass(frozen=True, slots=True)
class Port:
    """One input. `shape` is None where the rank is open, and so is each size in it that may vary."""

    name: str
    kind: str
    shape: tuple[int | None, ...] | None

    def takes(self, array: np.ndarray) -> bool:
        """Whether an array has this kind and shape."""
        fits = self.shape is None or (
            len(self.shape) == array.ndim
            and all(ours in (None, size) for ours, size in zip(self.shape, array.shape, strict=True))
        )
        return fits and self.kind in ("", array.dtype.name)

    def __str__(self) -> str:
        sizes = "any shape" if self.shape is None else _sizes(self.shape)
        return f"`{self.name}` {self.kind} {sizes}".replace("  ", " ")


@dataclass(frozen=True, slots=True)
class Ports:
    """The inputs of an executable. `batch_size` is the one that it takes, or None where it takes any."""

    ports: Sequence[Port]

    @property
    def batch_size(self) -> int | None:
        first = {port.shape[0] if port.shape else None for port in self.ports}
        return first.pop() if len(first) == 1 else None

    def fitted(self, run: Run) -> Callable[[Mapping[str, np.ndarray]], Arrays]:
        """`run` for requests of any batch, that hold more than it takes, and that are told what is wrong.

        Nothing is looked at that costs time: shapes are told once the runtime has refused them.
        Raises (when it runs): InputError.
        """
        names, batch_size = [port.name for port in self.ports], self.batch_size

        def fitting(feeds: Mapping[str, np.ndarray]) -> Arrays:
            try:
                given = {name: feeds[name] for name in names}
            except KeyError:
                raise self._refused(feeds) from None
            try:
                return run(given) if batch_size is None else piecewise(run, given, batch_size)
            except PareflowError:
                raise
            except Exception as error:
                if self.wrong(given):
                    raise self._refused(given) from error
                raise

        return fitting

    def check(self, feeds: Mapping[str, np.ndarray], *, no_others: bool = False) -> None:
        """Raises: InputError where a request lacks or mistakes an input, or has others where it may not."""
        if self.wrong(feeds) or (no_others and self._unknown(feeds)):
            raise self._refused(feeds)

    def _unknown(self, feeds: Mapping[str, np.ndarray]) -> list[str]:
        known = {port.name for port in self.ports}
        return [f"there is no `{name}`" for name in feeds if name not in known]

    def wrong(self, feeds: Mapping[str, np.ndarray]) -> list[str]:
        """What a request lacks, or gives otherwise than it must, input by input; any batch will do."""
        found = []
        for port in self.ports:
            if port.name not in feeds:
                found.append(f"`{port.name}` is missing")
                continue
            array = feeds[port.name]
            piece = array[:1].repeat(self.batch_size, axis=0) if self.batch_size and array.ndim else array
            if not port.takes(piece):
                found.append(f"`{port.name}` is {array.dtype.name} {_sizes(array.shape)}")
        return found

    def __str__(self) -> str:
        return ", ".join(map(str, self.ports))

    def _refused(self, feeds: Mapping[str, np.ndarray]) -> InputError:
        return InputError(
            f"a request must hold {self}",
            ", and ".join([*self.wrong(feeds), *self._unknown(feeds)]),
            "Mend what `preprocess` gives, or the names in the YAML",
        )


def piecewise(run: Run, feeds: Arrays, batch_size: int) -> Arrays:
    """The answers to a batch of any size from what takes batches of `batch_size` only.

    A last short piece is filled up by repetition. (`compiler/workers/program.py` has the same for its side
    of the pipe, where there is no pareflow.)
    Raises: BadOutputError where an output of theirs has not one shape.
    """
    count = _count(feeds, batch_size)
    if count == batch_size:
        return run(feeds)
    answers = [run(piece) for piece in pieces(feeds, batch_size)]
    joined = {name: _joined(name, [answer[name] for answer in answers], batch_size) for name in answers[0]}
    return {name: array[:count] for name, array in joined.items()}


def _joined(name: str, parts: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """The rows of all pieces. Raises: BadOutputError."""
    shapes = dict.fromkeys(part.shape for part in parts)
    if len(shapes) > 1 or any(shape[:1] != (batch_size,) for shape in shapes):
        raise BadOutputError(
            f"where the batch is fixed at {batch_size}, an output must have so many rows, all of one size",
            f"`{name}` has the shapes {', '.join(map(_sizes, itertools.islice(shapes, SHOWN)))}",
            "Pad it in the graph, such as to a fixed number of detections of which `postprocess` tells the "
            "filling; or export it with a batch of any size",
        )
    return np.concatenate(parts)


def pieces(feeds: Mapping[str, np.ndarray], batch_size: int) -> Iterator[Arrays]:
    """A batch of any size in batches of `batch_size`: a last short one is filled up by repetition."""
    count = _count(feeds, batch_size)
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        yield {name: array[rows] for name, array in feeds.items()}


def _count(feeds: Mapping[str, np.ndarray], default: int) -> int:
    return min((len(array) for array in feeds.values()), default=default)


def _sizes(shape: Sequence[int | None]) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in shape)})"
