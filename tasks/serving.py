"""Versions out of the registry, for the server: downloaded once, verified, and kept as last good copies."""

import functools
import json
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pareflow import store
from pareflow.errors import InputError, PareflowError, StoreError
from pareflow.serving.executable import Release
from pareflow.serving.model import verified
from pareflow.serving.plan import ServingPlan
from pareflow.serving.request_log import DAY_S
from pareflow.serving.slot import Challenge, FolderSource, Source
from pareflow.serving.standing import backend_in, here
from pareflow.serving.traffic import read as read_traffic
from pareflow.troubles import Troubles
from tasks.locking import flocked
from tasks.tracking import (
    CONTENT,
    TRAFFIC,
    Model,
    Tracker,
    Version,
    check_content,
    check_format,
    check_ours,
    verdict_tag_of,
)

log = logging.getLogger("pareflow.serving")

LAST, PLAN = "last.json", "pareflow.plan."
KEPT_DAYS = 30.0
"""So long a copy stays that no alias and no server needs."""
TAGS_S = 5.0
"""For how long a version's tags are taken for what they were."""


def source(target: str, data_dir: Path) -> Source:
    """Where the versions of `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a package's folder come from."""
    return RegistrySource(target, data_dir) if target.startswith("models:") else FolderSource(Path(target))


def releases_of(main: Release, plan: ServingPlan, data_dir: Path) -> dict[str, Release]:
    """A version, whose name is empty, and the plan's tiers by name, as they should be now."""
    return {"": main, **{name: source(one, data_dir).current() for name, one in plan.tiers.items()}}


def check_kept(target: str, to: Path | None, *, register: bool) -> None:
    """Before minutes are spent on the target's plan. Raises: InputError where it cannot be written to that
    file, or registered."""
    if register and not target.startswith("models:"):
        raise InputError(
            "a plan can be registered with a registered version", f"got {target}", "Name models:/NAME@ALIAS"
        )
    if to is not None and (to.is_dir() or not to.parent.is_dir()):
        found = f"{to} is a folder" if to.is_dir() else f"there is no folder {to.parent}"
        raise InputError("a plan must be written to a file in a folder", found, "Make it, or mend --to")


@functools.cache
def plan_tag(backend: str | None) -> str:
    """The tag of a plan for what this backend runs carries the environment that it was tuned in: elsewhere it
    does not hold (law 8)."""
    return f"{PLAN}{here(backend)[:12]}"


def register_plan(data_dir: Path, release: Release, plan: ServingPlan) -> None:
    """Keep a plan with the version that it was tuned for, in this environment. Raises: TrackingError."""
    backend = backend_in(release.package)
    keep_plan(Tracker.open(data_dir), release.name, release.version, backend, plan)


def keep_plan(tracker: Tracker, name: str, version: str, backend: str | None, plan: ServingPlan) -> None:
    """The same, with a tracker that is open; `backend` runs the version."""
    tracker.tag_version(name, version, plan_tag(backend), plan.model_dump_json(exclude_defaults=True))


def plan_of(version: Version, backend: str | None) -> ServingPlan | None:
    """The plan that is kept with a version, which this backend runs, for this environment; None where there
    is none, or none that can be read here."""
    told = version.tags.get(plan_tag(backend))
    return None if told is None else _read_plan(told, version.name, str(version.version))


def has_plans(version: Version) -> bool:
    """Whether plans are kept with a version, of whatever environment."""
    return any(tag.startswith(PLAN) for tag in version.tags)


@functools.cache
def _read_plan(told: str, name: str, number: str) -> ServingPlan | None:
    """None where another pareflow kept it, with settings that this one does not take, which is told once."""
    try:
        return ServingPlan.model_validate_json(told)
    except ValidationError as error:
        problems = "; ".join(one["msg"] for one in error.errors())
        words = "the plan kept with version %s of %s cannot be read here (%s): served without"
        log.warning(words, number, name, problems)
        return None


class RegistrySource:
    """What `models:/NAME@ALIAS` or `models:/NAME/VERSION` names, whenever it is asked.

    Copies lie in `folder` by what they contain; `last.json` there names the one that came last. One question
    to the registry tells where the aliases point; the tags of a version are read again every few seconds.
    """

    def __init__(self, uri: str, data_dir: Path) -> None:
        self.name, self._alias = _named(uri)
        self._number: str | None = None
        self._model: Model | None = None
        self._uri, self._data_dir = uri, data_dir
        self._folder = data_dir / "served" / self.name
        self._tracker: Tracker | None = None
        self._verified: dict[str, Path] = {}
        self._versions: dict[str, tuple[float, Version]] = {}
        self._judged: dict[Path, tuple[str | None, str]] = {}
        self._troubles = Troubles()

    def current(self) -> Release:
        """Raises: TransientError, TrackingError; InputError where it is not there, or damaged."""
        if self._alias is not None:
            self._model = self._open().model(self.name)
        number = self._number if self._alias is None else self._aliased(self._alias)
        found = self._open().resolve(self._uri) if number is None else self._version(number)
        if self._alias is None:
            self._number = str(found.version)  # it is there, and stays what it is
        release = self._release(found, "current")
        self._remember(release)
        return release

    def previous(self) -> Release | None:
        """Of a champion the one before; of what is named otherwise, none. Raises: as `current`."""
        number = self._aliased("previous") if self._alias == "champion" else None
        return None if number is None else self._release(self._version(number), "previous")

    def challenger(self) -> Challenge | None:
        """The version that the model's tag gives traffic. Raises: as `current`; InputError for a bad tag."""
        model = self._model if self._alias == "champion" else None
        told = None if model is None else model.tags.get(TRAFFIC)
        if told is None:
            return None
        traffic = read_traffic(told)
        if not traffic.flows():
            return None
        return Challenge(self._release(self._version(traffic.version), "challenger"), traffic)

    def copy(self, number: str) -> Path:
        """The package of a version that is looked at, and not served from here. Raises: as `current`."""
        self._model = self._open().model(self.name)
        return self._release(self._version(number), number).package

    def _open(self) -> Tracker:
        self._tracker = self._tracker or Tracker.open(self._data_dir)
        return self._tracker

    def _aliased(self, alias: str) -> str | None:
        """The number of the version that an alias pointed at when the registry was last asked."""
        number = None if self._model is None else self._model.aliases.get(alias)
        return None if number is None else str(number)

    def _version(self, number: str) -> Version:
        """A version as it was a few seconds ago: its tags seldom change. Raises: as `current`."""
        read_at, found = self._versions.get(number, (0.0, None))
        if found is None or time.monotonic() - read_at > TAGS_S:
            found = self._open().version(self.name, number)
            check_format(found)
            self._versions[number] = (time.monotonic(), found)
        return found

    def _release(self, version: Version, role: str) -> Release:
        check_ours(version)
        kept = self._folder / version.tags[CONTENT][:32]
        if kept not in self._verified.values():
            if not _whole(kept):
                self._fetch(self._open(), version, kept)
            with suppress(OSError):  # it may be another user's
                os.utime(kept)  # it is needed from now on
        self._verified[role] = kept  # whoever opens it verifies it again: here it is asked every second
        backend, where = self._where_judged(kept)
        judged = version.tags.get(verdict_tag_of(where))
        plan = self._plan_of(version, backend)
        return Release(self.name, str(version.version), kept, plan, judged, registered=True)

    def _plan_of(self, version: Version, backend: str | None) -> ServingPlan | None:
        """As `plan_of`; that there are only plans of other environments, as after an update, is told once."""
        number = str(version.version)
        if has_plans(version) and plan_tag(backend) not in version.tags:
            words = (
                f"version {number} of {self.name} has plans of other environments only: without --plan it is "
                "served by the default; `pareflow tune` or `calibrate` makes one here"
            )
            if self._troubles.is_new(f"plan of {number}", words):
                log.warning("%s", words)
        return plan_of(version, backend)

    def _where_judged(self, package: Path) -> tuple[str | None, str]:
        """What runs a package, and the environment that verdicts on it belong to here: read once, since both
        stay for as long as this process, which asks every second."""
        if package not in self._judged:
            backend = backend_in(package)
            self._judged[package] = backend, here(backend)
        return self._judged[package]

    def last(self) -> Release | None:
        told = self._told().get(self._uri)
        if told is None:
            return None
        # The folder may have come from another machine, or a runtime may be another one now.
        where = here(told.get("backend"))[:12]
        kept = told.get("plans", {}).get(where)
        plan = None if kept is None else _read_plan(json.dumps(kept), self.name, told["version"])
        judged = told.get("judged", {}).get(where)
        package = self._folder / told["package"]
        return Release(self.name, told["version"], package, plan, judged, registered=True)

    def _fetch(self, tracker: Tracker, version: Version, kept: Path) -> None:
        """Download beside the place, verify, and move there whole. Raises: InputError."""
        with flocked(self._folder, "copies"), tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            if _whole(kept):
                return  # another server fetched it meanwhile
            package = tracker.download(self.name, str(version.version), Path(scratch))
            check_content(package, version)
            shutil.copytree(package, Path(scratch) / "whole")
            shutil.rmtree(kept, ignore_errors=True)  # one that is damaged
            (Path(scratch) / "whole").replace(kept)
            with suppress(PareflowError, OSError):  # the next one sweeps, too
                self._sweep(kept)

    def _sweep(self, new: Path) -> None:
        """Remove old copies, but not what an alias points at, nor what a server served last."""
        if self._model is None:
            return
        aliases = self._model.aliases
        contents = {self._version(str(number)).tags.get(CONTENT, "")[:32] for number in aliases.values()}
        needed = {new.name, *contents, *(told["package"] for told in self._told().values())}
        needed |= {copy.name for copy in self._verified.values()}
        before = time.time() - KEPT_DAYS * DAY_S
        for copy in self._folder.iterdir():
            if copy.is_dir() and copy.name not in needed and copy.stat().st_mtime < before:
                shutil.rmtree(copy, ignore_errors=True)

    def _remember(self, release: Release) -> None:
        """Note what is served, for a start while the registry is away. Where the disk takes no note, which is
        told once for as long as it lasts, it is served all the same."""
        try:
            self._note(release)
            self._troubles.over("note")
        except (OSError, StoreError) as error:
            trouble = error.found if isinstance(error, StoreError) else error.strerror or str(error)
            if self._troubles.is_new("note", trouble):
                log.warning(
                    "version %s of %s is served, but a start without the registry would not know of it: %s",
                    release.version,
                    release.name,
                    trouble,
                )

    def _note(self, release: Release) -> None:
        """Raises: OSError."""
        backend, where = self._where_judged(release.package)
        plans = {} if release.plan is None else {where[:12]: release.plan.to_json()}
        judged = {} if release.judged is None else {where[:12]: release.judged}
        told = {
            "version": release.version,
            "package": release.package.name,
            "backend": backend,
            "plans": plans,
            "judged": judged,
        }
        if self._told().get(self._uri) != told:
            with flocked(self._folder, "last"):  # other servers of this folder note theirs in the same file
                store.replace(self._folder / LAST, json.dumps({**self._told(), self._uri: told}, indent=1))

    def _told(self) -> dict[str, Any]:
        """What each of these servers served last, by the URI that it follows."""
        path = self._folder / LAST
        told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return told


def _named(uri: str) -> tuple[str, str | None]:
    """The model, and the alias if it is named by one."""
    name, _, alias = uri.removeprefix("models:/").partition("@")
    return name.partition("/")[0], alias or None


def _whole(package: Path) -> bool:
    try:
        verified(package)
    except InputError:
        return False
    return True
