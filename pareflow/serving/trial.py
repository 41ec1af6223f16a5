"""A challenger beside the version that answers: its share of the requests, and copies in the background.

Whatever the challenger does, the request is answered: what it cannot answer, does not answer in time, or
answers with what cannot be an answer, the champion does. Copies are made after the answer, a few at a time.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
from starlette.requests import ClientDisconnect

from pareflow.errors import DeadlineError, OverloadedError
from pareflow.runtime.endpoint import answered_within, deadline
from pareflow.serving import agreement, protocol
from pareflow.serving.executable import Tensor
from pareflow.serving.hosting import PREDICTIONS, Hosted, Predicted
from pareflow.serving.metrics import Metrics
from pareflow.serving.record import Record
from pareflow.serving.traffic import Traffic
from pareflow.workload import Arrays

log = logging.getLogger("pareflow.serving")

COPIES = 4
"""That are under way at a time; further ones are skipped, and so are those for which somebody would wait."""
UNHURRIED = 10
"""Times as long a copy may take as a request: it is computed when nobody else wants to."""
Ask = Callable[[Hosted], Awaitable[Arrays]]


class Trial:
    """A challenger that is loaded, its traffic, and what was seen of it. Use it in the event loop.

    While the challenger answers requests, both versions are computed in threads: on the event loop nobody
    could be patient with it, and only what is computed alike can be compared.
    """

    def __init__(self, challenger: Hosted, champion: Hosted, traffic: Traffic, metrics: Metrics) -> None:
        self.challenger, self.champion, self.traffic = challenger, champion, traffic
        self.record = Record(champion.release.version, traffic)
        self._aside(traffic.canary > 0)
        self._metrics = metrics
        self._copies: set[asyncio.Task[None]] = set()

    async def answered(
        self, champion: Hosted, key: bytes, rows: int, ask: Ask, copy: Ask
    ) -> tuple[Arrays, Hosted]:
        """The answer to a request with this key and so many rows, and who gave it.

        `ask` asks for who waits, `copy` for nobody. Raises: what the champion raises.
        """
        if not self.traffic.flows():
            return await ask(champion), champion
        outputs, by = await self._chosen(champion, key, rows, ask)
        if self.traffic.draws("shadow", key):
            self._copy(champion, by, rows, outputs, copy)
        return outputs, by

    def give_up(self) -> None:
        """Ask the challenger no more, and give up the copies that are under way."""
        self.traffic = self.traffic.model_copy(update={"shadow": 0.0, "canary": 0.0})
        self._aside(False)
        for task in self._copies:
            task.cancel()

    def _aside(self, wanted: bool) -> None:
        for one in (self.champion, self.challenger):
            one.main.aside(wanted)

    async def _chosen(self, champion: Hosted, key: bytes, rows: int, ask: Ask) -> tuple[Arrays, Hosted]:
        """By the challenger, if the request is one of its share and it can; by the champion else."""
        trouble: Trouble | None = None
        if self.traffic.draws("canary", key):
            began = time.perf_counter()
            with self._given_up(self.challenger, began):
                answer = await self._tried(champion, rows, ask, self._patience_s())
            if not isinstance(answer, Trouble):
                self._timed(self.challenger, began)
                self._count("asked")
                return answer, self.challenger
            trouble = answer
        began = time.perf_counter()
        with self._given_up(champion, began):
            outputs = await ask(champion)
        self._timed(champion, began)
        if trouble is not None:  # a request that the champion refuses, too, is no fault of the challenger's
            self._wrong(trouble)
        return outputs, champion

    @contextmanager
    def _given_up(self, by: Hosted, began: float) -> Iterator[None]:
        """Where nobody waits any more it took so long at least: else whoever is slow would look quick."""
        try:
            yield
        except ClientDisconnect:
            self._timed(by, began)
            raise
        except DeadlineError:
            until = deadline()
            if until is not None and time.monotonic() >= until:  # else it was refused as it came
                self._timed(by, began)
            raise

    async def _tried(self, champion: Hosted, rows: int, ask: Ask, patience_s: float) -> "Arrays | Trouble":
        """The challenger's answer, or why there is none that could be given on.

        Raises: ClientDisconnect where nobody waits for it.
        """
        try:
            async with asyncio.timeout(patience_s):
                outputs = await ask(self.challenger)
        except ClientDisconnect:
            raise
        except (TimeoutError, OverloadedError) as error:
            return Trouble("late", f"no answer within {patience_s:.3g} s ({type(error).__name__})")
        except Exception as error:
            return Trouble("failed", f"{type(error).__name__}: {error}")
        words = unsound(outputs, rows, champion.main.outputs)
        return Trouble("unsound", words) if words else outputs

    def _copy(self, champion: Hosted, by: Hosted, rows: int, outputs: Arrays, copy: Ask) -> None:
        if len(self._copies) >= COPIES or champion.in_demand:
            self._count("skipped")
            return
        task = asyncio.create_task(self._compared(champion, by, rows, outputs, copy))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    async def _compared(self, champion: Hosted, by: Hosted, rows: int, outputs: Arrays, copy: Ask) -> None:
        """Ask the other version too, and compare. The champion's trouble with a copy says nothing."""
        patience_s = UNHURRIED * self.traffic.patience_ms / 1000
        with answered_within(patience_s):
            if by is champion:
                answer = await self._tried(champion, rows, copy, patience_s)
                if isinstance(answer, Trouble):
                    self._wrong(answer)
                    return
                self._count("asked")
                ours, theirs = outputs, answer
            else:
                try:
                    async with asyncio.timeout(patience_s):
                        ours, theirs = await copy(champion), outputs
                except Exception:
                    return
        await self._judged(champion, ours, theirs)

    async def _judged(self, champion: Hosted, ours: Arrays, theirs: Arrays) -> None:
        try:
            expected, spread = await champion.predictions(ours), champion.spread
        except Exception:
            return  # so says the champion's own processing of what the caller asked
        try:
            same = agree(expected, await self.challenger.predictions(theirs), spread)
        except Exception as error:
            self._note(Trouble("unsound", f"no prediction from its answer: {type(error).__name__}: {error}"))
            return
        self._count("compared")
        if same:
            self._count("agreed")

    def _patience_s(self) -> float:
        """How long the challenger may take, so that the champion is still in time."""
        until = deadline()
        patience_s = self.traffic.patience_ms / 1000
        return patience_s if until is None else min(patience_s, max(0.0, (until - time.monotonic()) / 2))

    def _timed(self, by: Hosted, began: float) -> None:
        seconds = time.perf_counter() - began
        if self.traffic.canary:
            self.record.timed(by.release.version, 1000 * seconds)
        self._metrics.answered_by(by.release.name, by.release.version, seconds)

    def _wrong(self, trouble: "Trouble") -> None:
        self._count("asked")
        self._note(trouble)

    def _note(self, trouble: "Trouble") -> None:
        self._count(trouble.kind)
        self.record.trouble(f"{trouble.kind}: {trouble.words}")
        log.info("the challenger, version %s, %s: %s", self.traffic.version, *trouble)

    def _count(self, what: str) -> None:
        self.record.counts[what] += 1
        self._metrics.tried(self.challenger.release.name, self.traffic.version, what)


class Trouble(NamedTuple):
    """Why the challenger gave no answer that could be given on: its kind is one of `record.COUNTS`."""

    kind: Literal["failed", "late", "unsound"]
    words: str


def unsound(outputs: Arrays, rows: int, expected: Sequence[Tensor]) -> str:
    """Why these cannot be the outputs for so many rows, in words; empty where they can."""
    for tensor in expected:
        if tensor.name == PREDICTIONS and isinstance(outputs, Predicted):
            continue  # predictions stand there instead
        array = outputs.get(tensor.name)
        if array is None:
            return f"there is no output `{tensor.name}`"
        sizes = (rows, *tensor.shape[1:])
        if array.ndim != len(sizes) or any(
            size not in (-1, found) for size, found in zip(sizes, array.shape, strict=True)
        ):
            return f"`{tensor.name}` has shape {array.shape} for {rows} rows"
        if protocol.datatype(array.dtype) != tensor.datatype:
            return f"`{tensor.name}` is {protocol.datatype(array.dtype)}, not {tensor.datatype}"
        if array.dtype.kind == "f" and np.isnan(array).any():
            return f"`{tensor.name}` holds NaN"
    return ""


def agree(one: np.ndarray, other: np.ndarray, spread: np.ndarray) -> bool:
    """Whether two predictions are the same in every row; with fractions, up to a part of the spread."""
    if "O" in (one.dtype.kind, other.dtype.kind):
        return len(one) == len(other) and bool(agreement.lists(one, other, agreement.NEAR * spread).all())
    if one.shape != other.shape:
        return False
    fractions = one.dtype.kind == other.dtype.kind == "f"
    same = agreement.near(one, other, agreement.NEAR * spread) if fractions else np.asarray(one == other)
    return bool(agreement.rows(same).all())
