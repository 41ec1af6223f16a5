"""Versions out of the registry, for the server: downloaded once, verified, and kept as last good copies."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

from pareflow.errors import InputError
from pareflow.measuring.environment import environment
from pareflow.serving.executable import Release
from pareflow.serving.model import verified
from pareflow.serving.plan import ServingPlan
from pareflow.serving.slot import FolderSource, Source
from tasks.tracking import CONTENT, Tracker

LAST = "last.json"


def source(target: str, data_dir: Path) -> Source:
    """Where the versions of `models:/NAME@ALIAS`, `models:/NAME/VERSION` or a package's folder come from."""
    return RegistrySource(target, data_dir) if target.startswith("models:") else FolderSource(Path(target))


@functools.cache
def plan_tag() -> str:
    """The tag of a plan carries the environment that it was tuned in: elsewhere it does not hold (law 8)."""
    return f"pareflow.plan.{environment().fingerprint[:12]}"


def register_plan(data_dir: Path, release: Release, plan: ServingPlan) -> None:
    """Keep a plan with the version that it was tuned for, in this environment. Raises: TrackingError."""
    keep_plan(Tracker.open(data_dir), release.name, release.version, plan)


def keep_plan(tracker: Tracker, name: str, version: str, plan: ServingPlan) -> None:
    """The same, with a tracker that is open."""
    tracker.tag_version(name, version, plan_tag(), plan.model_dump_json(exclude_defaults=True))


class RegistrySource:
    """What `models:/NAME@ALIAS` or `models:/NAME/VERSION` names, whenever it is asked.

    Copies lie in `folder` by what they contain; `last.json` there names the one that came last.
    """

    def __init__(self, uri: str, data_dir: Path) -> None:
        self.name = uri.removeprefix("models:/").partition("@")[0].partition("/")[0]
        self._uri, self._data_dir = uri, data_dir
        self._folder = data_dir / "served" / self.name
        self._tracker: Tracker | None = None
        self._verified: Path | None = None

    def current(self) -> Release:
        """Raises: TransientError, TrackingError; InputError where it is not there, or damaged."""
        tracker = self._tracker = self._tracker or Tracker.open(self._data_dir)
        version = tracker.resolve(self._uri)
        content = version.tags.get(CONTENT)
        if content is None:
            raise InputError(
                "a served version must have been registered by pareflow",
                f"{self._uri} has no tag {CONTENT}",
                "Register it by `pareflow optimize`",
            )
        kept = self._folder / content[:32]
        if kept != self._verified and not _whole(kept):
            self._fetch(tracker, str(version.version), content, kept)
        self._verified = kept  # whoever opens it verifies it again: here it is asked every few seconds
        tuned = version.tags.get(plan_tag())
        plan = None if tuned is None else ServingPlan.model_validate_json(tuned)
        release = Release(self.name, str(version.version), kept, plan)
        self._remember(release)
        return release

    def last(self) -> Release | None:
        try:
            told = json.loads((self._folder / LAST).read_text())[self._uri]
        except (OSError, KeyError):
            return None
        plan = None if told["plan"] is None else ServingPlan(**told["plan"])
        return Release(self.name, told["version"], self._folder / told["package"], plan)

    def _fetch(self, tracker: Tracker, version: str, content: str, kept: Path) -> None:
        """Download beside the place, verify, and move there whole. Raises: InputError."""
        from pareflow.stages.registration import content_digest

        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            package = tracker.download(self.name, version, Path(scratch))
            if content_digest(package) != content:
                raise InputError(
                    f"version {version} of {self.name} must be what was registered",
                    "its files give another digest",
                    "Register it again, or roll back",
                )
            shutil.copytree(package, Path(scratch) / "whole")
            shutil.rmtree(kept, ignore_errors=True)  # one that is damaged
            (Path(scratch) / "whole").replace(kept)

    def _remember(self, release: Release) -> None:
        path = self._folder / LAST
        known = json.loads(path.read_text()) if path.exists() else {}
        plan = None if release.plan is None else release.plan.model_dump(mode="json", exclude_defaults=True)
        told = {"version": release.version, "package": release.package.name, "plan": plan}
        if known.get(self._uri) != told:
            written = path.with_suffix(".new")
            written.write_text(json.dumps({**known, self._uri: told}, indent=1))
            written.replace(path)


def _whole(package: Path) -> bool:
    try:
        verified(package)
    except InputError:
        return False
    return True
