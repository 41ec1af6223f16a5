"""What the commands that move a registered model do, as functions that return documents."""

from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from flows.naming import model_name, pipeline_file
from flows.progress import Lines, shown
from pareflow import spec
from pareflow.collection import holding
from pareflow.errors import InputError
from pareflow.stages.run import Run
from pareflow.store import Store


def retrain(config: Path, data_dir: Path, console: Console, *, orchestrated: bool) -> dict[str, Any]:
    """The retraining, under Prefect or as plain functions; the document of its outcome."""
    spec.read(config)  # bad input is told before anything is started,
    Store(data_dir / "store")  # and so is a disk that cannot be written
    with Lines(console) as lines:
        shown.set(lines)
        if not orchestrated:
            from flows.retraining import run_retraining
            from tasks.execution import Plain

            return run_retraining(config, data_dir, Plain())
        from flows.local_server import under_prefect

        with under_prefect(data_dir, meanwhile="flows.retraining"):
            from flows.retraining import retraining

            return retraining(str(config), str(data_dir))


def move(
    target: str,
    approve: bool,
    reject: bool,
    to: str | None,
    config: Path | None,
    data_dir: Path,
    by: str | None,
    reason: str,
    *,
    over_champion: bool,
) -> dict[str, Any]:
    """What `pareflow promote` was asked for: one of approving, declining, copying, else promoting.

    Raises: InputError where it was asked for two of them.
    """
    asked = [
        option
        for option, given in (
            ("--approve", approve),
            ("--reject", reject),
            ("--to", to),
            ("--over-champion", over_champion),
        )
        if given
    ]
    if len(asked) > 1:
        raise InputError("one thing can be asked for", f"got {' and '.join(asked)}", "Leave all but one out")
    if to is not None:
        return copy(target, to, data_dir, by, reason)
    if approve or reject:
        return decide(target, "approve" if approve else "reject", by, reason, config, data_dir)
    if over_champion:
        by = _who(by, reason)
    return promote(target, config, data_dir, by, reason, over=over_champion)


def promote(
    target: str,
    config: Path | None,
    data_dir: Path,
    by: str | None = None,
    reason: str = "",
    *,
    over: bool = False,
) -> dict[str, Any]:
    """The challenger of a pipeline (its YAML) or of a model (its name) made champion, or why it is not.

    `over` is a person's word that a champion which cannot be compared with is passed over.
    Raises: InputError where its pipeline is left to a person's approval.
    """
    from tasks.pipelines import described
    from tasks.promotion import challenger_of, promote_challenger
    from tasks.tracking import Tracker

    path = pipeline_file(target)
    if path is not None:
        found = spec.read(path)
        tracker = Tracker.open(data_dir)
    else:
        name = model_name(target)
        tracker = Tracker.open(data_dir)
        found, path = described(tracker, name, challenger_of(tracker, name), config)
    if found.promotion == "approval":
        approving = f"`pareflow promote {found.name} --approve --by WHO --reason …`"
        raise InputError(
            f"{found.name} must be approved to be promoted: its pipeline says `promotion: approval`",
            "--over-champion asks nobody" if over else "neither --approve nor --reject was given",
            f"Set `promotion: manual` in {path} for this once" if over else approving,
        )
    with holding(Store(data_dir / "store"), f"promote {found.name}"):
        run = Run.open(found, path, data_dir)
        return promote_challenger(tracker, run, by=by, reason=reason, over=over)


def decide(
    target: str,
    decision: Literal["approve", "reject"],
    by: str | None,
    reason: str,
    config: Path | None,
    data_dir: Path,
) -> dict[str, Any]:
    """A person's word on the challenger that awaits approval. Raises: InputError where nothing does."""
    from flows.promotion import run_promotion
    from tasks.execution import Plain

    name, path, who = model_name(target), config or pipeline_file(target), _who(by, reason)
    return run_promotion(name, decision, who, reason, path, data_dir, Plain())


def _who(by: str | None, reason: str) -> str:
    """Who decided. Raises: InputError where that, or why, is not said."""
    if not by or not reason:
        missing = "--by" if not by else "--reason"
        raise InputError("a decision must say who decided, and why", f"{missing} is missing", "Add it")
    return by


def copy(target: str, to: str, data_dir: Path, by: str | None, reason: str) -> dict[str, Any]:
    """A model's champion, or the version that `models:/…` names, made challenger in another registry."""
    from tasks import copying
    from tasks.tracking import Tracker

    uri = target if target.startswith("models:") else f"models:/{model_name(target)}@champion"
    return copying.copy(Tracker.open(data_dir), uri, to, data_dir, by=by, reason=reason)


def rollback(
    target: str, data_dir: Path, by: str | None, reason: str, *, force: bool = False
) -> dict[str, Any]:
    """The previous champion made champion again."""
    from tasks.promotion import roll_back
    from tasks.tracking import Tracker

    name = model_name(target)
    return roll_back(Tracker.open(data_dir), name, by=by, reason=reason, force=force)


def history(target: str | None, data_dir: Path) -> list[dict[str, Any]]:
    """Every move of a model, the first one first. Raises: InputError where none is named."""
    from tasks import audit
    from tasks.tracking import Tracker

    if target is None:
        raise InputError("`pareflow list audit` must name a model", "none was named", "Name one")
    name = model_name(target)
    return audit.history(Tracker.open(data_dir), name)
