"""What happens beside the version that answers while another one is being opened, or the source is asked."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pytest

from pareflow.errors import InputError, PareflowError, TransientError
from pareflow.serving.executable import Release
from pareflow.serving.hosting import Hosted
from pareflow.serving.metrics import Metrics
from pareflow.serving.plan import ServingPlan
from pareflow.serving.slot import Challenge, Slot
from pareflow.serving.traffic import Traffic
from tests.unit.conftest import Shelf

IMAGE = {"images": np.zeros((1, 1, 8, 8), np.float32)}
PATIENCE_S = 20
_Found = TypeVar("_Found")


class Held:
    """Opens for a slot, and notes what it lets go of; what is opened as this is given when it is let."""

    def __init__(self, slot: Slot, kind: str) -> None:
        self.retired: list[Release] = []
        self._let, self._begun = asyncio.Event(), asyncio.Event()
        beside, opens, retire = slot.beside, slot.beside._opens, slot.beside._retire

        async def held(what: str, releases: Mapping[str, Release], *, apart: bool = False) -> Hosted:
            made = await opens(what, releases, apart=apart)
            if what == kind:
                self._begun.set()
                await self._let.wait()
            return made

        def noted(hosted: Hosted) -> None:
            self.retired.append(hosted.release)
            retire(hosted)

        beside._opens, beside._retire = held, noted

    async def begun(self) -> None:
        await self._begun.wait()

    async def let(self, slot: Slot) -> None:
        """And wait until all that was let go of is closed."""
        self._let.set()
        await slot.settled()
        await asyncio.gather(*slot._retiring)


@dataclass
class Late(Shelf):
    """A source whose next answer to `late` is as of when it was asked, and comes when it is let."""

    late: str = ""
    asked: threading.Event = field(default_factory=threading.Event)
    let: threading.Event = field(default_factory=threading.Event)

    def previous(self) -> Release | None:
        return self._answer("previous", super().previous())

    def challenger(self) -> Challenge | None:
        return self._answer("challenger", super().challenger())

    async def begun(self) -> None:
        assert await asyncio.to_thread(self.asked.wait, PATIENCE_S)

    def _answer(self, question: str, found: _Found) -> _Found:
        if self.late == question:
            self.late = ""
            self.asked.set()
            self.let.wait(PATIENCE_S)
        return found


@pytest.fixture
def three(two: tuple[Release, Release]) -> tuple[Release, ...]:
    return (*two, replace(two[0], version="3"))


def canary(release: Release) -> Challenge:
    return Challenge(release, Traffic(version=release.version, canary=0.5))


async def look(slot: Slot, source: Shelf, **found: Any) -> None:
    """What the source says from now on, heard of."""
    for name, value in found.items():
        setattr(source, name, value)
    await slot.refresh()


def test_a_challenger_that_is_promoted_while_the_next_is_opened_goes_on(three: tuple[Release, ...]) -> None:
    """Its trial was over by then: it is not let go of with the trial."""
    first, second, third = three
    source = Shelf(first, tried=canary(second))

    async def scenario() -> None:
        slot = Slot(source, ServingPlan(), Metrics(), standby=False)
        slot.start()
        await slot.refresh()
        await slot.settled()
        held = Held(slot, "challenger")
        await look(slot, source, tried=canary(third))
        await held.begun()
        await look(slot, source, release=second)
        assert slot.hosted.release == second
        await held.let(slot)
        assert held.retired == []
        await slot.hosted.answer(IMAGE)
        assert slot.trial is not None
        assert slot.trial.challenger.release == third
        await slot.close()

    asyncio.run(scenario())


def test_who_answered_until_now_stands_ready_and_not_what_is_opened_for_it(
    three: tuple[Release, ...],
) -> None:
    """The third version takes over while the first is opened as the one before the second."""
    first, second, third = three
    source = Shelf(second, before=first)

    async def scenario() -> None:
        slot = Slot(source, ServingPlan(), Metrics())
        slot.start()
        held = Held(slot, "previous")
        await slot.refresh()
        await held.begun()
        champion = slot.hosted
        await look(slot, source, release=third, before=second)
        await held.let(slot)
        assert slot.beside.standby is champion
        assert held.retired == [first]
        await champion.answer(IMAGE)
        await slot.close()

    asyncio.run(scenario())


def test_every_promotion_leaves_the_version_before_it_ready_as_it_is(three: tuple[Release, ...]) -> None:
    """Nothing is opened again for a way back, and what stood ready before is let go of."""
    first, second, third = three
    source = Shelf(first)

    async def scenario() -> None:
        slot = Slot(source, ServingPlan(), Metrics())
        slot.start()
        held = Held(slot, "nothing")
        await look(slot, source, release=second, before=first)
        await slot.settled()
        replaced = slot.hosted
        await look(slot, source, release=third, before=second)
        assert slot.beside.standby is replaced
        await held.let(slot)
        assert slot.beside.standby is replaced
        assert held.retired == [first]
        assert slot.hosted.release == third
        await replaced.answer(IMAGE)
        await slot.close()

    asyncio.run(scenario())


def test_what_was_previous_when_the_source_was_asked_does_not_replace_who_answered_since(
    three: tuple[Release, ...],
) -> None:
    """The third version takes over while the source is asked what was before the second."""
    first, second, third = three
    source = Late(second, before=first, late="previous")

    async def scenario() -> None:
        slot = Slot(source, ServingPlan(), Metrics())
        slot.start()
        held = Held(slot, "nothing")
        await slot.refresh()
        await source.begun()
        champion = slot.hosted
        await look(slot, source, release=third, before=second)
        source.let.set()
        await held.let(slot)
        assert slot.beside.standby is champion
        assert held.retired == []
        await champion.answer(IMAGE)
        await slot.close()

    asyncio.run(scenario())


def test_a_challenger_of_before_a_promotion_is_tried_beside_the_new_champion_alone(
    three: tuple[Release, ...],
) -> None:
    """The second version, which is tried, is promoted while the source is asked whom to try."""
    first, second, third = three
    source = Late(first, tried=canary(second))

    async def scenario() -> None:
        slot = Slot(source, ServingPlan(), Metrics(), standby=False)
        slot.start()
        await slot.refresh()
        await slot.settled()
        await look(slot, source, tried=canary(third), late="challenger")
        await source.begun()
        await look(slot, source, release=second)
        source.let.set()
        await slot.settled()
        assert slot.trial is None
        await look(slot, source)
        await slot.settled()
        assert slot.trial is not None
        assert (slot.trial.record.champion, slot.trial.challenger.release) == ("2", third)
        await slot.close()

    asyncio.run(scenario())


def tiered(target: str) -> ServingPlan:
    return ServingPlan(tiers={"small": target}, policies=({"deadline_routing": {}},))


@pytest.mark.parametrize(
    ("champions", "others"),
    [(None, tiered("one")), (tiered("one"), None), (tiered("one"), tiered("two"))],
    ids=["none and some", "some and none", "others of one name"],
)
def test_what_stands_beside_has_the_tiers_of_its_own_plan(
    three: tuple[Release, ...], champions: ServingPlan | None, others: ServingPlan | None
) -> None:
    """And takes over as it is; the version before it keeps its own."""
    first, second, third = (
        replace(release, plan=plan) for release, plan in zip(three, (others, champions, others), strict=True)
    )
    targets = {name: replace(three[0], version=name) for name in ("one", "two")}
    source = Shelf(second, before=first, tried=canary(third))

    def own(release: Release) -> dict[str, Release]:
        tiers = {} if release.plan is None else release.plan.tiers
        return {"": release, **{name: targets[target] for name, target in tiers.items()}}

    async def scenario() -> None:
        slot = Slot(source, None, Metrics(), lambda target: Shelf(targets[target]))
        slot.start()
        await slot.refresh()
        await slot.settled()
        champion, standby, trial = slot.hosted, slot.beside.standby, slot.trial
        assert standby is not None
        assert trial is not None
        assert (standby.releases, trial.challenger.releases) == (own(first), own(third))
        await look(slot, source, release=third, before=second, tried=None)
        await slot.settled()
        assert slot.hosted is trial.challenger
        assert champion.releases == own(second)
        await slot.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", [InputError, TransientError])
def test_a_tier_that_is_not_there_refuses_a_challenger_and_a_registry_that_is_away_does_not(
    three: tuple[Release, ...], kind: type[PareflowError]
) -> None:
    first, second, third = three
    source = Shelf(first, tried=canary(second))
    away = Shelf(kind("it must be there", "it is not", "Wait"))

    async def scenario() -> None:
        slot = Slot(source, None, Metrics(), lambda _: away)
        slot.start()
        await slot.refresh()
        await slot.settled()
        trial = slot.trial
        await look(slot, source, tried=canary(replace(third, plan=tiered("one"))))
        await slot.settled()
        assert slot.trial is (trial if kind is TransientError else None)
        refused = slot.observed()["refused"]
        assert (refused and refused["version"]) == (None if kind is TransientError else "3")
        await slot.close()

    asyncio.run(scenario())


def test_a_version_whose_own_plan_names_a_tier_that_is_gone_is_followed_without_it(
    two: tuple[Release, Release], caplog: pytest.LogCaptureFixture
) -> None:
    """A rollback must arrive; a plan that was named for the server holds or fails."""
    first, second = two
    source, gone = Shelf(first), Shelf(InputError("it must be registered", "it is not", "Name another"))

    async def scenario() -> None:
        slot = Slot(source, None, Metrics(), lambda _: gone, standby=False)
        slot.start()
        for _ in range(2):
            await look(slot, source, release=replace(second, plan=tiered("one")))
        assert slot.hosted.release == second
        await slot.close()

    asyncio.run(scenario())
    assert caplog.text.count("version 2 of images is served without its plan: it must be registered") == 1
    with pytest.raises(InputError, match="it must be registered"):
        Slot(source, tiered("one"), Metrics(), lambda _: gone)


@pytest.mark.parametrize("away", [False, True])
def test_a_version_that_was_rolled_back_while_it_was_opened_does_not_answer(
    two: tuple[Release, Release], away: bool
) -> None:
    """It is let go of; where the registry is away meanwhile, what it said before holds."""
    first, second = two
    source = Shelf(first)

    async def scenario() -> None:
        slot = Slot(source, ServingPlan(), Metrics(), standby=False)
        slot.start()
        ready, retire, retired = slot._ready, slot._retire, list[Release]()

        async def rolled_back(what: str, releases: Mapping[str, Release], *, apart: bool = False) -> Hosted:
            made = await ready(what, releases, apart=apart)
            source.release = TransientError("it must be reachable", "it is not", "Wait") if away else first
            return made

        def noted(hosted: Hosted) -> None:
            retired.append(hosted.release)
            retire(hosted)

        slot._ready, slot._retire = rolled_back, noted  # type: ignore[method-assign]
        await look(slot, source, release=second)
        assert (slot.hosted.release, retired) == ((second, [first]) if away else (first, [second]))
        await slot.hosted.answer(IMAGE)
        await slot.close()

    asyncio.run(scenario())
