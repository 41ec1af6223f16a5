"""A model's place in the server: the version that answers, and how the next one takes its place."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from pareflow.errors import CalibrationError, PareflowError, TrackingError, TransientError
from pareflow.hardware import memory
from pareflow.serving.executable import Release
from pareflow.serving.hosting import Hosted
from pareflow.serving.metrics import Metrics
from pareflow.serving.model import told
from pareflow.serving.opening import opened
from pareflow.serving.plan import ServingPlan

log = logging.getLogger("pareflow.serving")


class Source(Protocol):
    """Where a model's versions come from. Both methods block."""

    name: str

    def current(self) -> Release:
        """The version that should answer now. Raises: TransientError, TrackingError, InputError."""

    def last(self) -> Release | None:
        """The last version that came whole from here, for a start while the registry is away; or None."""


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


def _folder(target: str) -> Source:
    return FolderSource(Path(target))


async def _let_go(hosted: Hosted) -> None:
    """Close a version that is no longer served, and give back its memory."""
    await hosted.retire(for_good=True)
    del hosted
    await asyncio.to_thread(memory.give_back)


class Slot:
    """One served model, loaded where it is made: that blocks.

    Where the registry is away it is the last version that came whole from there. Without a plan it is served
    by the one that was tuned or calibrated for the version in this environment, else by the default. `found`
    gives the source of what the plan's tiers name.
    Raises: PareflowError where there is neither, or it cannot be served.
    """

    def __init__(
        self,
        source: Source,
        plan: ServingPlan | None,
        metrics: Metrics,
        found: Callable[[str], Source] = _folder,
    ) -> None:
        self.source, self.plan = source, plan
        self._found, self._tiers = found, dict[str, Source]()
        self._metrics = metrics
        self._trouble = ""
        self._uncalibrated: Mapping[str, Release] | None = None
        self._retiring: set[asyncio.Task[None]] = set()
        self.hosted: Hosted = self._opened(self._first())

    def start(self) -> None:
        """Put the policies in place; call it in the event loop."""
        self._answers(self.hosted)

    async def follow(self, every_s: float) -> None:
        """Switch to the source's current version whenever it is another, for ever."""
        while True:
            await asyncio.sleep(every_s)
            await self.refresh()

    async def refresh(self) -> None:
        """Switch to the current version where it is another; what cannot be loaded leaves the present one."""
        try:
            releases = await asyncio.to_thread(self._current)
            self._metrics.registry(reachable=True)
            if releases == self._uncalibrated:
                return  # it was told, and loading it again at every poll would change nothing
            if releases != self.hosted.releases:
                await self._switch(releases)
            self._trouble, self._uncalibrated = "", None
        except (TransientError, TrackingError) as error:
            self._away(error)
        except PareflowError as error:
            self._tell(f"the new version is refused, and {self.hosted.release.version} stays: {error}")

    async def close(self) -> None:
        """Wait for those that are being answered, and let go of everything."""
        await self.hosted.retire()
        await asyncio.gather(*self._retiring)

    def _current(self) -> dict[str, Release]:
        """What should answer now, by the name of the tier. Raises: as `Source.current`."""
        main = self.source.current()
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
            self._away(error)
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

    def _plan_of(self, main: Release) -> ServingPlan:
        return self.plan or main.plan or ServingPlan()

    def _tiers_of(self, main: Release) -> dict[str, Source]:
        """The sources of what the version's plan names, each made once: it knows what it has verified."""
        targets = self._plan_of(main).tiers
        for target in targets.values():
            if target not in self._tiers:
                self._tiers[target] = self._found(target)
        return {name: self._tiers[target] for name, target in targets.items()}

    def _opened(self, releases: Mapping[str, Release]) -> Hosted:
        return opened(releases, self._plan_of(releases[""]))

    async def _switch(self, releases: Mapping[str, Release]) -> None:
        """Load beside the present version, then take its place; no request is without one meanwhile."""
        try:
            before, after = self.hosted, await asyncio.to_thread(self._opened, releases)
        except CalibrationError:
            self._uncalibrated = releases
            raise
        self._answers(after)
        if self.plan is None and before.release.plan is not None and after.release.plan is None:
            log.warning(
                "version %s of %s has no plan of its own in this environment: the sessions and thresholds of "
                "version %s are not its own, and it is served without; see `pareflow tune` and `calibrate`",
                after.release.version,
                after.release.name,
                before.release.version,
            )
        task = asyncio.create_task(_let_go(before))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    def _answers(self, hosted: Hosted) -> None:
        self.hosted = hosted.started()
        release = hosted.release
        self._metrics.serves(release.name, release.version, hosted.figures)
        log.info("%s version %s answers: %s", release.name, release.version, hosted.endpoint.identity)

    def _away(self, error: PareflowError) -> None:
        self._metrics.registry(reachable=False)
        self._tell(str(error))

    def _tell(self, trouble: str) -> None:
        """Log what is wrong, once for as long as it lasts."""
        if trouble != self._trouble:
            log.warning("%s", trouble)
        self._trouble = trouble
