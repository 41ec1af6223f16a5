"""What stands beside the version that answers: the previous one, ready, and a challenger that is tried."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from pareflow.errors import PareflowError, TrackingError, TransientError
from pareflow.serving.background import in_background
from pareflow.serving.executable import Release
from pareflow.serving.hosting import Hosted
from pareflow.serving.metrics import Metrics
from pareflow.serving.trial import Trial

if TYPE_CHECKING:
    from pareflow.serving.slot import Challenge, Source


class Opens(Protocol):
    """Opens releases and puts their policies in place; `apart`, the main one in a process of its own."""

    def __call__(
        self, what: str, releases: Mapping[str, Release], *, apart: bool = False
    ) -> Awaitable[Hosted]:
        """`what` they are for, in words. Raises: what opening them does."""


class Beside:
    """The versions beside one that answers. Use it in the event loop.

    `with_tiers` gives a version and the tiers of its own plan, by name, and blocks; `retire` lets go of a
    version when nobody waits for an answer of it.
    """

    def __init__(
        self,
        source: "Source",
        metrics: Metrics,
        with_tiers: Callable[[Release], Mapping[str, Release]],
        opens: Opens,
        retire: Callable[[Hosted], None],
    ) -> None:
        self._source, self._metrics, self._opens, self._retire = source, metrics, opens, retire
        self._with_tiers = with_tiers
        self.standby: Hosted | None = None
        self.trial: Trial | None = None
        self.refused: dict[str, str] | None = None
        """The challenger that cannot be tried, and why."""

    def taken(self, releases: Mapping[str, Release]) -> Hosted | None:
        """What stands here, if it is what should answer now: it is ready, and takes no time."""
        if self.standby is not None and _is(self.standby, releases):
            found, self.standby = self.standby, None
            return found
        trial = self.trial
        if trial is None or trial.challenger.main.apart or not _is(trial.challenger, releases):
            return None
        self.trial = None
        self._metrics.tries(self._source.name, None)
        trial.give_up()
        return trial.challenger

    async def keep(self, before: Hosted) -> None:
        """Keep a version that answered until now, if it is the previous one, in place of another; else let go
        of it.

        Where no other is there it stands here meanwhile, for who names it.
        """
        stood = self.standby
        if stood is None:
            self.standby = before
        try:
            previous = await in_background(self._source.previous)
        except PareflowError:
            previous = None
        if stood is None and (previous == before.release or self.standby is not before):
            return  # it stays, or somebody has let go of it meanwhile
        gone: Hosted | None = before
        if stood is None:
            self.standby = None
        elif previous == before.release and self.standby in (stood, None):
            gone, self.standby = self.standby, before
        if gone is not None:
            self._retire(gone)

    async def keep_previous(self, hosted: Hosted) -> None:
        """Have the previous version loaded. Raises: what the sources do, and opening it."""
        stood, release = self.standby, await in_background(self._source.previous)
        releases: Mapping[str, Release] | None = None
        if release is not None and release.version != hosted.release.version:
            releases = await in_background(partial(self._with_tiers, release))
        if self.standby is not stood:
            return  # another version took over meanwhile, and the next look is at what is previous then
        if self.standby is not None:
            if self.standby.releases == releases:
                return
            before, self.standby = self.standby, None
            self._retire(before)
        if releases is None:
            return
        made = await self._opens("previous", releases)
        if self.standby is None:
            self.standby = made
        else:  # meanwhile another version took over, and the one before it stands here
            self._retire(made)

    async def follow_challenger(self, hosted: Hosted) -> None:
        """Try what the source names, on the traffic that it names. Raises: as `keep_previous`."""
        trial, champion = self.trial, hosted.release.version
        found = await in_background(self._source.challenger)
        if found is None or not found.traffic.flows() or found.release.version == champion:
            self.refused = None
            self.end_trial()
            return
        try:
            releases = await in_background(partial(self._with_tiers, found.release))
        except (TransientError, TrackingError):
            raise  # what is tried is tried on
        except Exception as error:
            self._refuse(found, error)
            raise
        if self.trial is not trial:
            return  # what is tried was promoted meanwhile
        if trial is not None and trial.record.champion == champion:
            trial.traffic = trial.traffic.model_copy(update={"until": found.traffic.until})  # it is renewed
            if trial.traffic == found.traffic and trial.challenger.releases == releases:
                return
        await self._begin_trial(hosted, found, releases)

    def end_trial(self) -> None:
        """Let go of the challenger; its traffic is the champion's from now on."""
        trial, self.trial = self.trial, None
        if trial is not None:
            self._metrics.tries(self._source.name, None)
            trial.give_up()
            self._retire(trial.challenger)

    async def close(self) -> None:
        """Let go of both."""
        self.end_trial()
        if self.standby is not None:
            await self.standby.retire()

    def observed(self) -> dict[str, Any]:
        """Who stands here, and what was seen of the challenger."""
        return {
            "ready": None if self.standby is None else self.standby.release.version,
            "trial": None if self.trial is None else self.trial.record.to_json(),
            "refused": self.refused,
        }

    async def _begin_trial(self, hosted: Hosted, found: "Challenge", releases: Mapping[str, Release]) -> None:
        """Load the challenger, unless it is, and give it its traffic."""
        apart = not found.traffic.canary
        challenger = None if self.trial is None else self.trial.challenger
        if challenger is None or challenger.releases != releases or challenger.main.apart != apart:
            try:
                challenger = await self._opens("challenger", releases, apart=apart)
            except Exception as error:
                self._refuse(found, error)
                raise
        self.refused = None
        before = self.trial  # as it is now: a challenger that was promoted meanwhile is nobody's here
        if before is not None:
            before.give_up()
            if before.challenger is not challenger:
                self._retire(before.challenger)
        self.trial = Trial(challenger, hosted, found.traffic, self._metrics)
        self._metrics.tries(self._source.name, found.traffic)

    def _refuse(self, found: "Challenge", error: Exception) -> None:
        """End the trial, and note why there is none."""
        self.end_trial()
        self.refused = {"version": found.release.version, "reason": str(error)}


def _is(hosted: Hosted, releases: Mapping[str, Release]) -> bool:
    """Whether it is these, and may take over at once.

    What was judged otherwise since, and not promoted, is opened anew, and refused there where it must be.
    """
    judged, before = releases[""].judged, hosted.release.judged
    return hosted.releases == releases and (judged == "promote" or judged == before != "reject")
