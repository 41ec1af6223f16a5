"""MLflow: the record of every run and variant, and the registry.

Beside `pyfunc.py`, and `owners.py` and `registry.py` which stand on it, the only module that imports mlflow.

Everything goes through `MlflowClient` with explicit run ids, since the fluent API does not nest in threads.
Writing is idempotent: a run is found again by its tag `pareflow.key`, a version by its content.
"""

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.entities.paged_list import PagedList

from pareflow.errors import InputError, StoreError, TrackingError, TransientError
from pareflow.measuring.environment import of_verdict
from pareflow.stages import outcome
from pareflow.stages.registration import content_digest
from pareflow.stages.run import Row, Run
from pareflow.store import writing
from pareflow.variant import digest
from tasks import figures, locking, registries
from tasks.ownership import Owner
from tasks.pyfunc import save_pyfunc

KEY = "pareflow.key"
CONTENT = "pareflow.content_sha256"
VARIANT = "pareflow.variant"
RUN = "pareflow.run"
DATA = "pareflow.data"
WORKLOAD = "pareflow.workload"
"""The digest of code, settings and data that a version's original was trained from."""
TRAFFIC = "pareflow.traffic"
"""Of a model: what share of its requests a challenger gets (`pareflow.serving.traffic`)."""
BREACH = "pareflow.breach"
"""Of a version: which rule of the monitor's it broke, and when."""
LEFT = "pareflow.left"
"""Of a version: who rolled back from it, and why."""
STOPPED = "pareflow.stopped"
"""Of a run: whether Ctrl-C ended its search, so that the same command goes on with it."""
BEGUN = "pareflow.begun"
"""Of a run: how often all of it was measured again, after the first time."""
LOOKED = "pareflow.looked"
"""Of a monitor's run: the number of the last look that it has a row of."""
MONITORED = "pareflow.monitored"
"""Of a monitor's run: the served version that it is about."""
CONFIG = "pareflow.config"
"""Where the pipeline YAML lay when the version was registered."""
ENVIRONMENT = "pareflow.environment"
"""The fingerprint of the environment of the run."""
VERDICT, ASKED = "pareflow.verdict.", "pareflow.sla."
"""How the tags of a version begin that say what the gate decided in an environment, and by which SLA."""
Version: TypeAlias = ModelVersion
Model: TypeAlias = RegisteredModel
"""Of the registry, for modules that must not import mlflow."""
FORMAT_TAG = "pareflow.format"
FORMAT = 3
"""Of the tags and packages of registered versions: what an older pareflow must not pass over raises it.

Versions from before the tag are of format 1; since 3 a package tells the batch that it must be served in."""
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""No such model, version or alias; and a number that is none."""
_BUSY = ("REQUEST_LIMIT_EXCEEDED", "TEMPORARILY_UNAVAILABLE")


@contextmanager
def _reaching(uri: str) -> Iterator[None]:
    """Tell a server that cannot be reached (worth another try) from one that says no, and from a full disk.

    What the client raised is not shown with it: it names the address as it is, with a password.
    """
    try:
        yield
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise _unreachable(uri, error) from None
    except OSError as error:  # of an embedded one's artifacts, or of what is packed for a server
        raise StoreError(
            f"the files of MLflow at {registries.without_secrets(uri)} must be read and written",
            f"the file system says: {error}",
            "Make room, or mend the folder; then run the same command again; what is finished is kept",
        ) from error
    except MlflowException as error:
        if "Max retries exceeded" in str(error) or error.error_code in _BUSY:
            raise _unreachable(uri, error) from None
        raise TrackingError(
            f"MLflow at {registries.without_secrets(uri)} must accept what is recorded",
            f"it said {error.error_code}: {registries.without_secrets(_first_words(error))}",
            "Mend the server, then run the same command again; what is finished is kept",
        ) from None


def _first_words(error: MlflowException) -> str:
    """The first line of what was said; where that only leads to the reason, as of a download, up to it."""
    said: list[str] = []
    for line in filter(None, map(str.strip, str(error).splitlines())):
        said.append(line.strip("# "))
        if not line.endswith((":", "#")):
            break
    return " ".join(said)


def _unreachable(uri: str, error: Exception) -> TransientError:
    must = f"MLflow at {registries.without_secrets(uri)} must be reachable"
    if failing := re.search(r"too many (\d+) error responses", str(error)):
        return TransientError(
            must,
            f"it answers with errors ({failing[1]})",
            "See its log: its database or artifact store may be away; then run the same command again",
        )
    return TransientError(
        must,
        f"it is not ({type(error).__name__})",
        "Start it, or unset MLFLOW_TRACKING_URI; then run the same command again; what is finished is kept",
    )


@dataclass(frozen=True)
class Tracker:
    """One MLflow: the server that `MLFLOW_TRACKING_URI` names, else SQLite and files in the data folder."""

    uri: str
    artifacts: Path | None
    locks: Path
    registry: str | None = None
    """The registry, where it is another than what the environment says."""
    owner: Owner | None = None
    """Who records; once declared dead nothing more is. None is not fenced: what no run's owner does."""
    parent: str | None = None
    """The run that it owns."""

    @classmethod
    def open(cls, data_dir: Path) -> "Tracker":
        """Prove that MLflow answers, and initialise an embedded one, once, under a lock.

        Ten processes that initialise one new database together break it for good.
        Raises: TransientError, TrackingError, StoreError.
        """
        named = os.environ.get("MLFLOW_TRACKING_URI")
        with writing(data_dir):
            if named:
                tracker = cls(named, None, data_dir / "locks")
            else:
                folder = data_dir.resolve() / "mlflow"
                folder.mkdir(parents=True, exist_ok=True)
                embedded = registries.embedded(data_dir)
                tracker = cls(embedded, folder / "artifacts", data_dir / "locks")
            tracker._initialize()
        return tracker

    @classmethod
    def at(cls, uri: str, data_dir: Path) -> "Tracker":
        """The MLflow at this address, for records and registry both, whatever the environment names.

        `data_dir` holds the locks of a server; an embedded MLflow has its own.
        Raises: InputError, TransientError, TrackingError.
        """
        artifacts, locks = None, data_dir / "locks"
        if uri.startswith("sqlite:///"):
            folder = Path(uri.removeprefix("sqlite:///")).resolve().parent
            if not folder.is_dir():
                raise InputError(
                    "an embedded MLflow must be there", f"there is no folder {folder}", "Mend its address"
                )
            artifacts, locks = folder / "artifacts", folder.parent / "locks"
        tracker = cls(uri, artifacts, locks, uri)
        tracker._initialize()
        return tracker

    def _initialize(self) -> None:
        """Reach MLflow once. A server has its database; another is made by one process alone."""
        alone = nullcontext() if self.uri.startswith("http") else self.locked("mlflow")
        with alone, self.reached() as client:
            client.search_experiments(max_results=1)

    @property
    def registry_uri(self) -> str:
        return self.registry or os.environ.get("MLFLOW_REGISTRY_URI") or self.uri

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri, self.registry_uri)

    @contextmanager
    def reached(self) -> Iterator[MlflowClient]:
        """The client. Raises: TransientError, TrackingError, StoreError for what it raises."""
        with _reaching(self.uri):
            yield self.client

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold one named lock of this data folder alone."""
        with locking.flocked(self.locks, name):
            yield

    @contextmanager
    def moving(self, name: str) -> Iterator[locking.StillHeld]:
        """Hold the lock under which one version of the model at a time is judged to be promoted: for minutes.

        Raises: TransientError, TrackingError.
        """
        with locking.exclusive(self.locks, f"promotion-{name}") as still_held:
            yield still_held

    @contextmanager
    def switching(self, name: str) -> Iterator[locking.StillHeld]:
        """Hold the lock that whoever moves `champion` or `previous` must hold: for as long as that takes, so
        that a rollback waits for no judgement.

        Raises: TransientError, TrackingError.
        """
        with locking.exclusive(self.locks, f"aliases-{name}") as still_held:
            yield still_held

    def check_alive(self) -> None:
        """Called before results are recorded. Raises: FencedError where the owner was declared dead."""
        if self.owner is not None and self.parent is not None:
            self.owner.check(self.client.get_run(self.parent).data.tags)

    def begin(self, run: Run) -> str:
        """The id of the parent run of this pipeline run, found or made."""
        tags = {ENVIRONMENT: run.environment.fingerprint, DATA: run.facts.data_digest}
        with self.reached() as client:
            parent = self._run(run, run.id, f"{run.spec.name}-{run.id[:8]}", tags)
            if run.remeasure:
                client.set_tag(parent, BEGUN, str(self._begun(parent) + 1))
            return parent

    def _begun(self, parent: str) -> int:
        return int(self.client.get_run(parent).data.tags.get(BEGUN, "0"))

    def variant(self, run: Run, parent: str, row: Row) -> None:
        """One child run per variant: recipe as params, measurements as metrics, samples as an artifact.

        A finalist is recorded twice: as screened (metrics at step 0), then as judged (step 1). What is
        measured again has steps beyond: MLflow shows the metric of the highest one.
        """
        document = outcome.variant(row)
        phase = "search" if row.verdict is None else "verdict"
        content = digest(json.dumps(document, sort_keys=True))
        tags = {
            VARIANT: str(row.id),
            "pareflow.status": row.status,
            ENVIRONMENT: run.environment.fingerprint,
            f"pareflow.recorded.{phase}": content,
        }
        params = [Param(name, settings) for name, settings in figures.params(row).items()]
        now = int(time.time() * 1000)
        with self.reached() as client, self.locked("recording"):
            self.check_alive()
            key = f"{run.id}:{digest(row.recipe.to_json())[:16]}"
            child = self._run(run, key, row.label[:250], {"mlflow.parentRunId": parent})
            if client.get_run(child).data.tags.get(f"pareflow.recorded.{phase}") == content:
                return
            step = 2 * self._begun(parent) + int(phase == "verdict")
            metrics = [Metric(name, value, now, step) for name, value in figures.metrics(document).items()]
            client.log_dict(child, document, "variant.json")
            if row.measurement is not None:
                client.log_dict(child, row.measurement.to_json(), "samples.json")
            client.set_terminated(child, "FINISHED" if row.status == "ok" else "FAILED")
            client.log_batch(  # last: its tag says that all is recorded
                child,
                metrics=metrics,
                params=params,
                tags=[RunTag(name, value) for name, value in tags.items()],
            )

    def stop(self, parent: str) -> None:
        """Keep that the search of this run was stopped, before what it has found is registered."""
        with self.reached() as client:
            self.check_alive()
            client.set_tag(parent, STOPPED, "true")

    def stopped(self, run: Run) -> bool:
        """Whether the search of this pipeline run was stopped, and has not gone on to an end since."""
        with self.reached() as client:
            experiment = client.get_experiment_by_name(run.spec.name)
            if experiment is None:
                return False
            wanted = f"tags.`{KEY}` = '{run.id}' AND tags.`{STOPPED}` = 'true'"
            return bool(client.search_runs([experiment.experiment_id], wanted, max_results=1))

    def finish(self, run: Run, parent: str, document: Mapping[str, Any], *, stopped: bool = False) -> None:
        """The outcome: verdicts of the finalists, the document, the report and the traces; and whether the
        search was `stopped` before its end."""
        with self.reached() as client:
            self.check_alive()
            client.log_dict(parent, dict(document), "run.json")
            client.log_artifacts(parent, str(run.output), "report")
            verdict = (document["verdict"] or {}).get("decision", "inconclusive")
            client.set_tag(parent, "pareflow.verdict", verdict)
            client.set_tag(parent, STOPPED, str(stopped).lower())
            client.set_terminated(parent, "FINISHED")

    def register(self, run: Run, parent: str, package: Path, winner: Row) -> ModelVersion:
        """The version of this content in the registry, found or made, with its lineage as tags."""
        name, content = run.spec.name, content_digest(package, FORMAT)
        assert winner.verdict is not None  # only judged rows win
        tags = {
            CONTENT: content,
            FORMAT_TAG: str(FORMAT),
            RUN: run.id,
            VARIANT: str(winner.id),
            "pareflow.recipe": winner.label[:4000],
            DATA: run.facts.data_digest,
            WORKLOAD: run.facts.digest,
            "pareflow.seed": str(run.facts.seed),
            ENVIRONMENT: run.environment.fingerprint,
            CONFIG: str(run.config.resolve()),
            **_verdict_tags(run, winner.verdict.decision, winner.recipe.backend.name),
        }
        with self.locked("mlflow"):
            registries.remember(self.locks.parent, self.registry_uri)
        return self.add(name, package, tags, parent)

    def holding(self, name: str, package: Path) -> ModelVersion | None:
        """The version of this model that has this package's content, or None."""
        return self._holding(name, content_digest(package, FORMAT))

    def _holding(self, name: str, content: str) -> ModelVersion | None:
        return next((found for found in self.versions(name) if found.tags.get(CONTENT) == content), None)

    def add(
        self, name: str, package: Path, tags: Mapping[str, str], parent: str | None = None
    ) -> ModelVersion:
        """The version with the content that `tags` name, found or made of the package, with these tags.

        One that came from another environment keeps its lineage, which leads to folders there, and is told
        the verdict. Its files are logged by the MLflow run `parent`; where there is none, by one made for it.
        """
        # It uploads: nobody else waits for that.
        with self.reached() as client, self.locked(f"registering-{name}"):
            self.check_alive()
            if not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name, {"pareflow.pipeline": name})
            version = self._holding(name, tags[CONTENT])
            if version is not None:
                ours = version.tags.get(ENVIRONMENT) == tags.get(ENVIRONMENT)
                for tag, value in tags.items():
                    if ours or tag.startswith((VERDICT, ASKED)):
                        client.set_model_version_tag(name, version.version, tag, value)
                return version
            if parent is None:
                made = client.create_run(self.experiment(name), run_name=f"copy {tags[CONTENT][:8]}")
                parent = str(made.info.run_id)
                client.set_terminated(parent)
            source = self._upload(parent, package, f"model/{tags[CONTENT][:16]}")
            return client.create_model_version(name, source, run_id=parent, tags=dict(tags))

    def resolve(self, uri: str) -> ModelVersion:
        """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names. Raises: InputError."""
        matched = re.fullmatch(r"models:/([^/@]+)(?:@(.+)|/(\d+))", uri)
        if matched is None:
            raise InputError(
                "a registered version must be named models:/NAME@ALIAS or models:/NAME/VERSION",
                f"got `{uri}`",
                "See `pareflow list versions`",
            )
        name, alias, number = matched.groups()
        found = self.version(name, number) if alias is None else self.alias(name, alias)
        if found is None:
            raise _unregistered(uri)
        check_format(found)
        return found

    def record_verdict(self, run: Run, version: ModelVersion, decision: str, backend: str | None) -> None:
        """Tag a version with what the gate said of it in this run's environment, by its SLA and objective;
        `backend` runs it."""
        for tag, value in _verdict_tags(run, decision, backend).items():
            self.tag_version(version.name, str(version.version), tag, value)

    def versions(self, name: str) -> list[ModelVersion]:
        """All versions of a registered model, newest first."""
        with self.reached() as client:
            return list(client.search_model_versions(f"name = '{name}'"))

    def registered(self) -> list[dict[str, Any]]:
        """Every version of every model as lists show it, by a question per page and not per version."""
        with self.reached() as client:
            models = all_pages(client.search_registered_models, max_results=1000)
            versions = all_pages(client.search_model_versions, max_results=10_000)
        aliases: dict[tuple[str, str], list[str]] = {}
        for model in models:
            for alias, number in model.aliases.items():
                aliases.setdefault((model.name, str(number)), []).append(alias)
        return [_listed(found, aliases.get((found.name, str(found.version)), [])) for found in versions]

    def version(self, name: str, number: str) -> ModelVersion:
        """One version of a registered model. Raises: InputError where there is none."""
        with self.reached() as client:
            try:
                return client.get_model_version(name, number)
            except MlflowException as error:
                if error.error_code in ABSENT:
                    raise _unregistered(f"models:/{name}/{number}") from None
                raise

    def alias(self, name: str, alias: str) -> ModelVersion | None:
        """The version that an alias points at, or None."""
        with self.reached() as client:
            try:
                return client.get_model_version_by_alias(name, alias)
            except MlflowException as error:
                if error.error_code in ABSENT:
                    return None
                raise

    def model(self, name: str) -> RegisteredModel | None:
        """A registered model with its aliases and tags, by one question; or None."""
        with self.reached() as client:
            try:
                return client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code in ABSENT:
                    return None
                raise

    def tag_model(self, name: str, tag: str, value: str | None) -> None:
        """Set a tag of a registered model, which no copy of its versions takes along; None removes it."""
        with self.reached() as client:
            if value is not None:
                client.set_registered_model_tag(name, tag, value)
            elif tag in client.get_registered_model(name).tags:
                client.delete_registered_model_tag(name, tag)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point an alias at a version, and read it back. Raises: TrackingError if it did not take."""
        with self.reached() as client:
            self.check_alive()
            client.set_registered_model_alias(name, alias, version)
            found = self.alias(name, alias)
        if found is None or str(found.version) != str(version):
            raise TrackingError(
                f"alias `{alias}` of {name} must point at version {version}",
                f"it points at {found and found.version}",
                "Promote again: something else moved it",
            )

    def tag_version(self, name: str, version: str, tag: str, value: str | None) -> None:
        """Set a tag of a registered version; None removes it."""
        with self.reached() as client:
            if value is not None:
                client.set_model_version_tag(name, version, tag, value)
            elif tag in client.get_model_version(name, version).tags:
                client.delete_model_version_tag(name, version, tag)

    def download(self, name: str, version: str, into: Path) -> Path:
        """The package of a version, as the registry gives it back.

        The copy of pareflow's code beside it, for those who load the version without pareflow, stays there:
        through a server each of its files is a request.
        """
        with self.reached() as client:
            package = f"{client.get_model_version_download_uri(name, version)}/data/package"
            local = mlflow.artifacts.download_artifacts(package, dst_path=str(into), tracking_uri=self.uri)
        return Path(local)

    def monitored(self, name: str, version: str) -> str:
        """The id of the run that holds what was seen of a served version, found or made."""
        tags = {MONITORED: version}
        with _reaching(self.uri):
            return self._keyed(name, _monitoring(name, version), f"monitoring-{version}", tags)

    def observed(self, run_id: str, figures: Mapping[str, float], at_ms: int, step: int) -> None:
        """One row of figures; what is no number is left out."""
        rows = [Metric(k, v, at_ms, step) for k, v in figures.items() if math.isfinite(v)]
        with self.reached() as client:
            client.log_batch(run_id, metrics=rows, tags=[RunTag(LOOKED, str(step))])

    def looked(self, name: str) -> dict[str, str]:
        """The number of the last look that a row is kept of, by the version of this model that was served."""
        with self.reached() as client:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                return {}
            found = client.search_runs([experiment.experiment_id], f"tags.`{MONITORED}` LIKE '%'")
            tags = [run.data.tags for run in found]
            return {one[MONITORED]: one[LOOKED] for one in tags if LOOKED in one}

    def note(self, run_id: str, document: Mapping[str, Any], path: str) -> None:
        """A document as an artifact of a run."""
        with self.reached() as client:
            client.log_dict(run_id, dict(document), path)

    def keeps_artifacts(self) -> None:
        """Prove that the artifact store takes a small file, gives it back, and lets it be removed.

        Raises: TransientError, TrackingError where it does not.
        """
        with self.reached() as client, tempfile.TemporaryDirectory() as folder:
            run = client.create_run(self.experiment("pareflow-doctor"), run_name="doctor").info
            try:
                client.log_text(run.run_id, "kept?", "doctor.txt")
                client.download_artifacts(run.run_id, "doctor.txt", folder)
                store: Any = get_artifact_repository(run.artifact_uri, self.uri)
                store.delete_artifacts("doctor.txt")
            finally:
                client.delete_run(run.run_id)

    def _run(self, run: Run, key: str, name: str, tags: Mapping[str, str]) -> str:
        """The id of the run with this key in the pipeline's experiment, found or made."""
        return self._keyed(run.spec.name, key, name, tags)

    def _keyed(self, pipeline: str, key: str, name: str, tags: Mapping[str, str]) -> str:
        """The same by the pipeline's name, under a lock."""
        with self.locked("mlflow"):
            experiment = self.experiment(pipeline)
            found = self.client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", max_results=1)
            if found:
                return str(found[0].info.run_id)
            all_tags = {**tags, KEY: key}
            return str(self.client.create_run(experiment, tags=all_tags, run_name=name).info.run_id)

    def experiment(self, name: str) -> str:
        """The id of the experiment with this name, found or made."""
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if self.artifacts is None else (self.artifacts / name).as_uri()
            try:
                return str(self.client.create_experiment(name, location))
            except MlflowException as error:
                found = self.client.get_experiment_by_name(name)
                if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise  # else another one was quicker
        return str(found.experiment_id)

    def _upload(self, parent: str, package: Path, path: str) -> str:
        """Log the package as a pyfunc made from code and plain files; its URI.

        `path` must name the content: one run may register another winner when it measures again.
        """
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            save_pyfunc(package, model)
            self.client.log_artifacts(parent, str(model), path)
        return f"{self.client.get_run(parent).info.artifact_uri}/{path}"


def _monitoring(name: str, version: str) -> str:
    """The key of the run that holds what was seen of a served version."""
    return f"monitoring:{name}:{version}"


def _unregistered(uri: str) -> InputError:
    must, found = f"{uri} must be registered", "the registry has no such version"
    return InputError(must, found, "See `pareflow list versions`")


def content_of(package: Path, tags: Mapping[str, str]) -> str:
    """What the tag `CONTENT` of a version with these tags must be, if this is its package."""
    return content_digest(package, int(tags.get(FORMAT_TAG, 1)))


def check_content(package: Path, version: ModelVersion) -> None:
    """Raises: InputError where the package is damaged, or not what the version was registered as."""
    if content_of(package, version.tags) != version.tags.get(CONTENT):
        raise InputError(
            f"version {version.version} of {version.name} must be what was registered",
            "its files give another digest",
            "Register it again, or roll back",
        )


def all_pages(search: Callable[..., PagedList[Any]], max_results: int) -> list[Any]:
    """What a search of the client's finds, page by page."""
    page = search(max_results=max_results)
    found = list(page)
    while page.token:
        page = search(max_results=max_results, page_token=page.token)
        found += page
    return found


def _listed(version: ModelVersion, aliases: list[str]) -> dict[str, Any]:
    """One version with its aliases (one from a search lacks them), and the tags of ours."""
    tags = {key: value for key, value in version.tags.items() if key.startswith("pareflow.")}
    return {"name": version.name, "version": str(version.version), "aliases": sorted(aliases), **tags}


def variants_registered(uri: str, data_dir: Path) -> dict[str, str]:
    """The variants that the versions of one registry name, each with the address of such a version.

    Raises: TransientError, TrackingError.
    """
    asked = Tracker(uri, None, data_dir / "locks", uri)
    try:
        with asked.locked("mlflow"), asked.reached() as client:
            versions = all_pages(client.search_model_versions, max_results=10_000)
    except TransientError as error:
        remedy = f"Start it; if it is gone for good, take it out of {data_dir / registries.FILE}"
        raise TransientError(error.must, error.found, f"{remedy}. Nothing was removed") from error
    tagged = (version for version in versions if VARIANT in version.tags)
    return {one.tags[VARIANT]: f"models:/{one.name}/{one.version}" for one in tagged}


def verdict_of(run: Run, tags: Mapping[str, str], backend: str | None) -> str | None:
    """What the gate said of a version in this run's environment by this run's SLA and objective, where this
    backend runs it; None: it was not asked."""
    decision = tags.get(verdict_tag_of(where_judged(run, backend)))
    asked = _verdict_tags(run, decision or "", backend)
    return decision if asked.items() <= tags.items() else None


def _verdict_tags(run: Run, decision: str, backend: str | None) -> dict[str, str]:
    """A decision, and what was asked: by which SLA, and for which objective."""
    where = where_judged(run, backend)
    asked = digest(run.spec.sla.model_dump(mode="json"), run.spec.objective)
    return {verdict_tag_of(where): decision, f"{ASKED}{where[:12]}": asked}


def where_judged(run: Run, backend: str | None) -> str:
    """The fingerprint of the environment that the verdict belongs to."""
    return (run.environment if backend is None else of_verdict(run.environment, backend)).fingerprint


def check_format(version: Version) -> None:
    """Raises: InputError where a newer pareflow registered a version, whose tags may mean something else."""
    if int(version.tags.get(FORMAT_TAG, FORMAT)) > FORMAT:
        raise InputError(
            f"the tags of models:/{version.name}/{version.version} must be of format {FORMAT} or older",
            f"they are of format {version.tags[FORMAT_TAG]}",
            "Install the pareflow that registered it",
        )


def check_ours(version: Version) -> None:
    """Raises: InputError where pareflow did not register a version, or a newer one did."""
    check_format(version)
    if CONTENT not in version.tags:
        raise InputError(
            "a version must have been registered by pareflow",
            f"models:/{version.name}/{version.version} has no tag {CONTENT}",
            "Register it by `pareflow optimize`",
        )


def verdict_tag_of(fingerprint: str) -> str:
    """The tag of a verdict in the environment with this fingerprint: copying a version copies its tags
    (law 8)."""
    return f"{VERDICT}{fingerprint[:12]}"
