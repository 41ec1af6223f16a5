"""A model's place in the server: the version that answers, and how the next one takes its place.

Beside it stand the previous one, loaded, so that a rollback takes no longer than to hear of it; and a
challenger, while it is tried on a share of the traffic.
"""

import asyncio
import logging
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pareflow.compiler.worker import Worker
from pareflow.errors import InputError, PareflowError, TimedOutError, TrackingError, TransientError
from pareflow.hardware import memory
from pareflow.serving.background import in_background
from pareflow.serving.beside import Beside
from pareflow.serving.executable import Release
from pareflow.serving.hosting import Hosted, Standing
from pareflow.serving.metrics import Metrics
from pareflow.serving.model import told
from pareflow.serving.opening import opened
from pareflow.serving.plan import ServingPlan
from pareflow.serving.standing import Unjudged, recorded, standing
from pareflow.serving.traffic import Traffic
from pareflow.serving.trial import Trial
from pareflow.troubles import Troubles

log = logging.getLogger("pareflow.serving")

OPENS_S = 600.0
"""The longest that opening a version may take."""
AGAIN_S = 60.0
"""After which a version that could not be opened is tried again; not one that hung, whose memory is held."""
_SAID: Mapping[Standing, tuple[int, str]] = {
    "elsewhere": (
        logging.WARNING,
        "version %s of %s was judged in another environment: `pareflow check` judges it here",
    ),
    "inconclusive": (
        logging.WARNING,
        "version %s of %s was judged in this environment, and the verdict is inconclusive: it is in doubt",
    ),
    "rejected": (
        logging.ERROR,
        "version %s of %s was rejected in this environment, and answers until another one takes its place: "
        "`pareflow rollback` brings back the previous one",
    ),
}
"""What is logged where a version that was judged so begins to answer, or is judged so while it does."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """A version that is to be tried, and on what traffic."""

    release: Release
    traffic: Traffic


class Source(Protocol):
    """Where a model's versions come from. All methods block."""

    name: str

    def current(self) -> Release:
        """The version that should answer now. Raises: TransientError, TrackingError, InputError."""

    def last(self) -> Release | None:
        """The last version that came whole from here, for a start while the registry is away; or None."""

    def previous(self) -> Release | None:
        """The version that a rollback would bring back, as `current` last saw it. Raises: as `current`."""

    def challenger(self) -> Challenge | None:
        """The version that is to be tried beside the current one, as `current` last saw it.

        Raises: as `current`.
        """


class FolderSource:
    """A package in a folder, such as that of an offline bundle: its name and version stay."""

    def __init__(self, folder: Path) -> None:
        document = told(folder)
        self.name: str = document["pipeline"]
        self._release = Release(self.name, str(document["variant"])[:12], folder)

    def current(self) -> Release:
        return self._release

    def last(self) -> Release | None:
        return self._release

    def previous(self) -> Release | None:
        return None

    def challenger(self) -> Challenge | None:
        return None


def _folder(target: str) -> Source:
    return FolderSource(Path(target))


async def _let_go(hosted: Hosted, others: Callable[[], tuple[Hosted, ...]]) -> None:
    """Close a version that is no longer served, and give back its memory."""
    await hosted.retire(others)
    del hosted
    await asyncio.to_thread(memory.give_back)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What could not be opened, why, and when it may be tried again: opening takes seconds of a core."""

    releases: Mapping[str, Release]
    judged: str | None
    error: Exception
    again: float


class Slot:
    """One served model, loaded where it is made: that blocks.

    Where the registry is away it is the last version that came whole from there. Without a plan it is served
    by the one that was tuned or calibrated for the version in this environment, else by the default. `found`
    gives the source of what the plan's tiers name. `standby`: the previous version is kept loaded, which
    takes its memory. So many `models` share the machine, and each has `most_sessions` at most.
    Raises: PareflowError where there is neither, or it cannot be served.
    """

    def __init__(
        self,
        source: Source,
        plan: ServingPlan | None,
        metrics: Metrics,
        found: Callable[[str], Source] = _folder,
        *,
        standby: bool = True,
        unjudged: Unjudged = "check",
        models: int = 1,
        most_sessions: int | None = None,
    ) -> None:
        self.source, self.plan = source, plan
        self._found, self._tiers = found, dict[str, Source]()
        self._models, self._most_sessions = models, most_sessions
        self._metrics, self._keeps, self._unjudged = metrics, standby, unjudged
        self._troubles = Troubles()
        self._refusals: dict[str, _Refusal] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._tending: asyncio.Task[None] | None = None
        self.beside = Beside(source, metrics, self._with_tiers, self._ready, self._retire)
        self.hosted: Hosted = self._opened(self._first())

    @property
    def trial(self) -> Trial | None:
        """The challenger and its traffic, if there is one."""
        return self.beside.trial

    @property
    def loaded(self) -> tuple[Hosted, ...]:
        """The version that answers, and the previous one where it stands ready, for who names it."""
        standby = self.beside.standby
        return (self.hosted,) if standby is None else (self.hosted, standby)

    @property
    def _standing(self) -> tuple[Hosted, ...]:
        """All that is loaded here."""
        return self.loaded if self.trial is None else (*self.loaded, self.trial.challenger)

    def start(self) -> None:
        """Put the policies in place; call it in the event loop.

        Raises: what they refuse, once what was opened is closed.
        """
        try:
            self._answers(self.hosted.started())
        except BaseException:
            self.hosted.close()
            raise

    async def follow(self, every_s: float) -> None:
        """Do what the source says, for ever; at once, too, since what stands beside is not there yet."""
        while True:
            await self.refresh()
            await asyncio.sleep(every_s)

    async def refresh(self) -> None:
        """Switch to the current version where it is another; what cannot be loaded leaves the present one.

        What stands beside it is loaded meanwhile: `settled` waits for that.
        """
        await self._watched("new", self._follow_champion)
        if self._tending is None or self._tending.done():
            self._tending = asyncio.create_task(self._tend())

    async def settled(self) -> None:
        """Wait until what stands beside the present version is as the source said."""
        if self._tending is not None:
            await self._tending

    async def close(self) -> None:
        """Wait for those that are being answered, and let go of everything."""
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        try:
            await self.beside.close()
        finally:
            await asyncio.gather(self.hosted.retire(), *self._retiring)

    def observed(self) -> dict[str, Any]:
        """What stands here, and what was seen of the challenger: for who decides about it."""
        present = {"champion": self.hosted.release.version, "judged": self.hosted.standing}
        return {"model": self.source.name, **present, **self.beside.observed()}

    async def _follow_champion(self) -> None:
        try:
            releases = await in_background(self._current)
            self._metrics.registry(reachable=True)
        except (TransientError, TrackingError):
            self._metrics.registry(reachable=False)
            raise
        if releases != self.hosted.releases:
            await self._switch(releases)
        elif releases[""].judged != self.hosted.release.judged:  # it was judged here since
            self._hears(self.hosted, releases[""])
            self._answers(self.hosted)

    async def _tend(self) -> None:
        if self._keeps:
            await self._watched("previous", lambda: self.beside.keep_previous(self.hosted))
        await self._watched("challenger", lambda: self.beside.follow_challenger(self.hosted))

    async def _watched(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Whatever goes wrong is told, once for as long as it lasts, and what stands here stays."""
        try:
            await work()
            self._troubles.over(what)
        except (TransientError, TrackingError) as error:
            self._tell(what, str(error))
        except Exception as error:  # of a library that opens it: following goes on
            kind = "" if isinstance(error, PareflowError) else f"{type(error).__name__}: "
            version = self.hosted.release.version
            self._tell(what, f"the {what} version is refused, and {version} stays: {kind}{error}")

    def _current(self) -> dict[str, Release]:
        """What should answer now, by the name of the tier; where a tier of its own plan is gone, it answers
        without that plan. Raises: as `Source.current`."""
        main = self.source.current()
        try:
            releases = self._with_tiers(main)
        except InputError as error:
            if self.plan is not None:
                raise
            self._tell("plan", f"version {main.version} of {main.name} is served without its plan: {error}")
            return {"": replace(main, plan=None)}
        self._troubles.over("plan")
        return releases

    def _with_tiers(self, main: Release) -> dict[str, Release]:
        """A version and the tiers of its own plan, as they should be now. Raises: as `Source.current`."""
        return {"": main, **{name: tier.current() for name, tier in self._tiers_of(main).items()}}

    def _first(self) -> dict[str, Release]:
        try:
            releases = self._current()
            self._metrics.registry(reachable=True)
            return releases
        except (TransientError, TrackingError) as error:
            whole = self._last()
            if whole is None:
                raise
            self._metrics.registry(reachable=False)
            self._tell("new", str(error))
            for release in whole.values():
                log.warning(
                    "serving version %s of %s, the last that came whole", release.version, release.name
                )
            return whole

    def _last(self) -> dict[str, Release] | None:
        """What came whole before, by the name of the tier; None where one never did."""
        main = self.source.last()
        if main is None:
            return None
        last = {name: tier.last() for name, tier in self._tiers_of(main).items()}
        whole = {name: release for name, release in last.items() if release is not None}
        return {"": main, **whole} if len(whole) == len(last) else None

    def _plan_of(self, main: Release) -> ServingPlan | None:
        """None: the default plan of its package."""
        return self.plan or main.plan

    def _tiers_of(self, main: Release) -> dict[str, Source]:
        """The sources of what the version's plan names, each made once: it knows what it has verified."""
        plan = self._plan_of(main)
        targets = {} if plan is None else plan.tiers
        for target in targets.values():
            if target not in self._tiers:
                self._tiers[target] = self._found(target)
        return {name: self._tiers[target] for name, target in targets.items()}

    async def _ready(self, what: str, releases: Mapping[str, Release], *, apart: bool = False) -> Hosted:
        """Releases, opened, with their policies in place. What was refused is not opened again at once."""
        known, judged = self._refusals.get(what), releases[""].judged
        same = known is not None and (known.releases, known.judged) == (releases, judged)
        if known is not None and same and time.monotonic() < known.again:
            raise known.error.with_traceback(None)
        try:
            made = await self._made(releases, apart=apart)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they hold what was opened
            again = math.inf if isinstance(error, TimedOutError) else time.monotonic() + AGAIN_S
            self._refusals[what] = _Refusal(releases, judged, error, again)
            raise
        self._refusals.pop(what, None)
        return made

    async def _made(self, releases: Mapping[str, Release], *, apart: bool) -> Hosted:
        """The same, whatever was refused before. Raises: what opening it does, once all is closed again;
        TimedOutError where it hangs: what it then holds is closed if it ever ends."""
        workers = list[Worker]()
        opening = partial(self._opened, releases, workers if apart else None)
        try:
            made = await in_background(opening, OPENS_S, Hosted.close)
        except BaseException:
            for worker in workers:
                worker.kill()
            raise
        try:
            return made.started()
        except BaseException:
            await asyncio.to_thread(made.close)
            raise

    def _opened(self, releases: Mapping[str, Release], apart: list[Worker] | None = None) -> Hosted:
        hosted = opened(
            releases,
            self._plan_of(releases[""]),
            apart=apart,
            models=self._models,
            most_sessions=self._most_sessions,
        )
        try:
            hosted.standing = standing(hosted.main, self._unjudged)
        except BaseException:
            hosted.close()
            raise
        return hosted

    def _hears(self, hosted: Hosted, release: Release) -> None:
        """Note how it was judged since it was opened: what answers goes on, whatever that is."""
        hosted.main.release = release
        hosted.standing = recorded(hosted.main)

    async def _switch(self, releases: Mapping[str, Release]) -> None:
        """Load beside the present version, then take its place; no request is without one meanwhile."""
        before, after = self.hosted, self.beside.taken(releases)
        if after is None:
            after = await self._ready("new", releases)
            if not await self._still(releases, after):
                return
        self._hears(after, releases[""])
        self._answers(after)
        self._tell_of_plans(before.release, after.release)
        if self._keeps:
            await self.beside.keep(before)
        else:
            self._retire(before)

    async def _still(self, releases: Mapping[str, Release], made: Hosted) -> bool:
        """Whether these should still answer, which took a while to open; if not, what was made is let go of,
        and the next look decides. Where the registry is away, what it said before holds."""
        try:
            wanted = await in_background(self._current)
        except (TransientError, TrackingError):
            return True
        except BaseException:
            self._retire(made)
            raise
        if wanted != releases:
            self._retire(made)
        return wanted == releases

    def _tell_of_plans(self, before: Release, after: Release) -> None:
        if self.plan is None and before.plan is not None and after.plan is None:
            log.warning(
                "version %s of %s has no plan of its own in this environment: the sessions and thresholds of "
                "version %s are not its own, and it is served without; see `pareflow tune` and `calibrate`",
                after.version,
                after.name,
                before.version,
            )

    def _retire(self, hosted: Hosted) -> None:
        task = asyncio.create_task(_let_go(hosted, lambda: self._standing))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _answers(self, hosted: Hosted) -> None:
        self.hosted = hosted
        release = hosted.release
        self._metrics.serves(release.name, release.version, hosted.figures, hosted.standing)
        log.info("%s version %s answers: %s", release.name, release.version, hosted.endpoint.identity)
        if hosted.standing in _SAID:
            level, words = _SAID[hosted.standing]
            log.log(level, words, release.version, release.name)

    def _tell(self, what: str, trouble: str) -> None:
        """Log what is wrong, once for as long as it lasts."""
        if self._troubles.is_new(what, trouble):
            log.warning("%s", trouble)
