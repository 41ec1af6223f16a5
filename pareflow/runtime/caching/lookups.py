"""Answers looked up by key, and computed once where they are missing."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from pareflow.runtime.caching.accounts import Account
from pareflow.runtime.caching.session import copied
from pareflow.runtime.caching.stores import Store
from pareflow.workload import Arrays

Compute = Callable[[list[int]], Awaitable[list[Arrays]]]
"""The answers at these places of a request."""


class _Flight:
    """Answers that are being computed, where each of them comes, and how many requests wait for them."""

    def __init__(self, keys: list[bytes], task: asyncio.Task[list[Arrays]]) -> None:
        self.task, self.waiting = task, 0
        self.places = {key: place for place, key in enumerate(keys)}
        self._taken = set[bytes]()

    def answer(self, key: bytes) -> Arrays:
        """Itself for the last one who waited, once: whoever gets that may write into it at once."""
        answer = self.task.result()[self.places[key]]
        if self.waiting or key in self._taken:
            return copied(answer)
        self._taken.add(key)
        return answer


class Lookups:
    """A store before something that computes. Equal requests that come meanwhile wait for the first.

    Whoever is cancelled takes nobody with him; whoever waited for one that failed asks for himself, since
    what it failed of (its deadline, another sample of its batch) need not be his.
    """

    def __init__(self, store: Store, account: Account) -> None:
        self._store, self._account = store, account
        self._flights: dict[bytes, _Flight] = {}

    async def answers(self, keys: Sequence[bytes], compute: Compute, began: float) -> list[Arrays]:
        """One for each key, the caller's to change. `began`: since when it costs, by `time.perf_counter`."""
        found = await self._store.get(keys)
        missing = [i for i, answer in enumerate(found) if answer is None]
        cost_s = time.perf_counter() - began
        if not missing:
            self._account.looked_up(len(keys), 0, cost_s)
        else:
            own = self._take_off(keys, missing, compute)
            joined = sum(self._flights[keys[i]] is not own for i in missing)
            self._account.looked_up(len(keys) - len(missing), len(missing), cost_s, joined)
            for i, answer in zip(missing, await self._computed(keys, missing, own, compute), strict=True):
                found[i] = answer
        return [answer for answer in found if answer is not None]

    def _take_off(self, keys: Sequence[bytes], missing: list[int], compute: Compute) -> _Flight | None:
        """Begin to compute, together, what nobody computes yet."""
        places = {keys[i]: i for i in reversed(missing) if keys[i] not in self._flights}
        if not places:
            return None
        own = [keys[i] for i in sorted(places.values())]
        computing = self._compute(own, sorted(places.values()), compute)
        flight = _Flight(own, asyncio.get_running_loop().create_task(computing))
        flight.task.add_done_callback(lambda _: self._land(flight))
        self._flights |= dict.fromkeys(own, flight)
        return flight

    def _land(self, flight: _Flight) -> None:
        for key in flight.places:
            if self._flights.get(key) is flight:
                del self._flights[key]

    async def _compute(self, keys: list[bytes], places: list[int], compute: Compute) -> list[Arrays]:
        began = time.perf_counter()
        answers = await compute(places)
        ended = time.perf_counter()
        self._account.computed(len(keys), ended - began)
        self._store.put(dict(zip(keys, answers, strict=True)))
        self._account.paid(time.perf_counter() - ended)
        return answers

    async def _computed(
        self, keys: Sequence[bytes], missing: list[int], own: _Flight | None, compute: Compute
    ) -> list[Arrays]:
        flights = {i: self._flights[keys[i]] for i in missing}
        await self._landed(set(flights.values()))
        failed = [i for i, flight in flights.items() if flight.task.exception()]
        if own is not None:
            own.task.result()  # raises what it failed of
        answers = {i: flight.answer(keys[i]) for i, flight in flights.items() if not flight.task.exception()}
        answers |= zip(failed, await compute(failed) if failed else (), strict=True)
        return [answers[i] for i in missing]

    async def _landed(self, flights: set[_Flight]) -> None:
        """Wait for all of them. One that nobody waits for any more is given up."""
        for flight in flights:
            flight.waiting += 1
        try:
            await asyncio.wait([flight.task for flight in flights])
        finally:
            for flight in flights:
                flight.waiting -= 1
                if not flight.waiting and not flight.task.done():
                    self._land(flight)  # so that nobody joins what ends
                    flight.task.cancel()
