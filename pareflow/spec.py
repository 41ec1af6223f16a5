"""The pipeline YAML, validated: every problem at once, with did-you-mean.

Reading has no effects, reads no environment and rewrites nothing: `PipelineSpec.read(dump) == spec`.
"""

import itertools
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pareflow.catalog import TECHNIQUES, WORKLOADS, complete, find, members, problem, unknown
from pareflow.errors import InputError, SpecError
from pareflow.hardware.device_profile import DeviceProfile
from pareflow.sla import SLA, Objective
from pareflow.variant import Recipe, Step

_Model = TypeVar("_Model", bound=BaseModel)
RANGE = 17
"""Values of a range: a step of a quarter of them can be halved twice until it is one."""
NAME = r"^[a-z0-9][a-z0-9_-]*$"
"""Of a pipeline, and so of its model."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Target(_Part):
    """The machine that will serve: the device, and how many threads it may grant one request.

    With a profile it is another machine than this one: only what that one runs is tried, and `device` is what
    stands in for it here.
    """

    device: Literal["cpu"] = "cpu"
    threads: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2)
    profile: DeviceProfile | None = Field(
        default=None, description="in a file: the path of one of `configs/devices/`, from its folder"
    )

    @model_validator(mode="after")
    def _has_so_many_cores(self) -> Self:
        if not self.usable_threads:
            assert self.profile is not None  # else all are usable
            raise ValueError(
                f"`threads` must name a count that the device has ({self.profile.cores}), "
                f"but got {', '.join(map(str, self.threads))}"
            )
        return self

    @property
    def usable_threads(self) -> tuple[int, ...]:
        """The thread counts for which the device has cores."""
        return tuple(n for n in self.threads if self.profile is None or n <= self.profile.cores)


class Budget(_Part):
    """What the run may use. One variant is stopped at `variant_minutes` or `memory_mib`.

    `minutes` are of the run, however often it was killed: the same command goes on with what was left, and
    decides again what it decided.

    A machine that is too busy to time on is waited for, `quiet_minutes` before each timing.

    `store_gib` bounds the store at the run's end, and not before: what was used least recently may be what
    the run is about to use. What the run has used stays, so that the same command finds it.
    """

    minutes: float = Field(default=10, gt=0)
    variant_minutes: float = Field(default=5, gt=0)
    quiet_minutes: float = Field(default=5, ge=0)
    memory_mib: int | None = Field(default=None, ge=256)
    store_gib: float | None = Field(default=None, ge=0)


class Profile(_Part):
    """What the profile leaves besides the report: TensorBoard's event files, of its times in ms."""

    tensorboard: bool = False


class Sweep(_Part):
    """Where the winner is timed beside the strong baseline: each batch size at each sequence length."""

    batch_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1,)
    lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), description="tokens")

    def points(self) -> tuple[tuple[int, int | None], ...]:
        """Batch size and length of each; a length of None is what the inputs have."""
        return tuple(itertools.product(self.batch_sizes, self.lengths or (None,)))


class Retraining(_Part):
    """How a model that was trained anew is judged against the champion, besides the SLA.

    What it brings is its training: of equal networks neither is provably faster, so that a small loss is let
    pass. Where nothing was trained anew, the champion must be beaten.
    """

    objective_margin: float = Field(
        default=0.05, ge=0, lt=1, description="the share of the objective that it may lose, at most"
    )


def _as_reference(value: Any) -> Any:
    """`workload.py` is short for `{file: {path: workload.py}}`."""
    return {"file": {"path": value}} if isinstance(value, str) else value


class Range(_Part):
    """What the search may set a setting to, between two numbers: 17 values, evenly apart, or by an even ratio
    with `log`."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _leads_upwards(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                "a range must lead from `low` up to `high`, and from above 0 with `log`, "
                f"but is {self.low:g} to {self.high:g}"
            )
        return self

    def values(self) -> tuple[float, ...]:
        """Both ends, and three digits each between them: what is closer makes no other network."""
        spaced = np.geomspace if self.log else np.linspace
        between = (float(f"{n:.3g}") for n in spaced(self.low, self.high, RANGE)[1:-1])
        return tuple(dict.fromkeys((self.low, *between, self.high)))


def _as_values(given: Any) -> Any:
    """The values of a setting of the space: listed, or of a range."""
    if not isinstance(given, Mapping):
        return given
    try:
        return Range.model_validate(given).values()
    except ValidationError as error:
        told = (problem(e, Range.model_fields) for e in error.errors())
        raise ValueError("; ".join(told)) from error


def _as_target(value: Any) -> Any:
    """`cpu` is short for `{device: cpu}`."""
    return {"device": value} if isinstance(value, str) else value


Values = Annotated[tuple[Any, ...], BeforeValidator(_as_values), Field(min_length=1)]
"""What a setting of the space may be, in an order that means something."""


class PipelineSpec(_Part):
    """One pipeline: what to optimize, for what, and within what."""

    name: str = Field(
        pattern=NAME, description="names the experiment and the model: no other pipeline's on its registry"
    )
    workload: Annotated[
        dict[str, Any],
        BeforeValidator(_as_reference),
        Field(min_length=1, max_length=1, description="a file of your own, or one that comes with pareflow"),
    ]
    target: Annotated[Target, BeforeValidator(_as_target)] = Target()
    sla: SLA
    objective: Objective = Field(default="latency_p50", description="what to minimise among those that pass")
    budget: Budget = Budget()
    profile: Profile = Profile()
    sweep: Sweep | None = Field(default=None, description="where else the winner is timed, after its verdict")
    promotion: Literal["automatic", "approval", "manual"] = Field(
        default="manual",
        description="manual: until `pareflow promote`; approval: until a person agrees",
    )
    approval_hours: float | None = Field(
        default=None, gt=0, le=8760, description="how long a person has to approve; left out, 72"
    )
    retraining: Retraining = Retraining()
    finalists: int = Field(default=3, ge=1, description="how many candidates are judged on the verdict split")
    candidates: tuple[list[Any], ...] | None = Field(
        default=None, description="recipes; left out, the search's"
    )
    space: dict[str, dict[str, Values]] | None = Field(
        default=None,
        description="the techniques with training that the search may use, each with the values of settings "
        "that are other than the built-in ones, or with a range of them (`{low: 0.2, high: 0.8}`, by ratios "
        "with `log: true`); left out, all. It goes with no `candidates`",
    )

    @model_validator(mode="after")
    def _waits_for_somebody(self) -> Self:
        if self.approval_hours is not None and self.promotion != "approval":
            raise ValueError(
                f"`approval_hours` needs `promotion: approval`, but promotion is {self.promotion}"
            )
        return self

    @model_validator(mode="after")
    def _one_list_of_what_is_tried(self) -> Self:
        if self.space is not None and self.candidates is not None:
            raise ValueError(
                "one of `space` and `candidates` must be given, but both are: no search reads `space`"
            )
        return self

    def recipes(self) -> tuple[Recipe, ...] | None:
        """The candidates of the YAML as recipes, or None where it names none."""
        if self.candidates is None:
            return None
        return tuple(Recipe.from_json(steps) for steps in self.candidates)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def read(path: Path, target: Path | None = None) -> PipelineSpec:
    """The pipeline in a YAML file, for the device of another file where `target` names one.

    Raises: InputError if one cannot be read, SpecError with every problem.
    """
    document = _loaded(path, "the pipeline file", "`pareflow init NAME` writes one")
    if isinstance(document, Mapping):
        document = {**document, "target": _with_profile(document.get("target", {}), path.parent, target)}
    return parse(document, str(path))


def read_profile(path: Path) -> DeviceProfile:
    """The device in a YAML file. Raises: InputError if it cannot be read, SpecError with every problem."""
    return read_part(
        DeviceProfile, path, "a device profile", "Those of `configs/devices/` come with pareflow"
    )


def read_part(model: type[_Model], path: Path, what: str, remedy: str) -> _Model:
    """What one YAML file holds, as its class. Raises: InputError if it cannot be read, SpecError."""
    return _valid(model, _loaded(path, what, remedy), str(path), [])


def _with_profile(target: Any, folder: Path, named: Path | None) -> Any:
    """The document's target, its profile's path replaced by what the file holds, so that ids depend on it."""
    if isinstance(target, str):
        target = {"profile": target} if target.endswith((".yaml", ".yml")) else {"device": target}
    if not isinstance(target, Mapping):
        return target
    path = named
    if path is None and isinstance(target.get("profile"), str):
        path = folder / target["profile"]
    return target if path is None else {**target, "profile": read_profile(path).model_dump(mode="json")}


def _loaded(path: Path, what: str, remedy: str) -> Any:
    """What a YAML file holds. Raises: InputError, SpecError."""
    try:
        return yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise InputError(f"{what} must be readable", f"{path}: {error.strerror}", remedy) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(str(path), [f"not YAML: {' '.join(str(error).split())}"]) from error


class _Loader(yaml.SafeLoader):
    """YAML's safe reader, which keeps the last of two equal keys; here they are an error (law 2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                problem = f"`{key}` is given twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def parse(document: Any, source: str) -> PipelineSpec:
    """The pipeline that a document holds. Raises: SpecError with every problem."""
    problems = []
    if isinstance(document, Mapping):
        problems = _workload_problems(document.get("workload"))
        problems += _candidate_problems(document.get("candidates"), _threads_of(document.get("target", {})))
        problems += _space_problems(document.get("space"))
    return _valid(PipelineSpec, document, source, problems)


def _valid(model: type[_Model], document: Any, source: str, problems: list[str]) -> _Model:
    """What a document holds. Raises: SpecError with every problem, those already known last."""
    if not isinstance(document, Mapping):
        raise SpecError(source, [f"the top must be a mapping of keys, but it is {type(document).__name__}"])
    try:
        found = model.model_validate(dict(document))
    except ValidationError as error:
        problems = [problem(e, _fields_at(model, e["loc"])) for e in error.errors()] + problems
    if problems:
        raise SpecError(source, problems)
    return found


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are known where an error lies."""
    for part in location[:-1]:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        options = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        model = next((option for option in options if issubclass(option, BaseModel)), model)
    return list(model.model_fields)


def _workload_problems(reference: Any) -> list[str]:
    if not isinstance(reference, Mapping) or len(reference) != 1:
        return []
    ((name, settings),) = reference.items()
    if name == "file":
        if not isinstance(settings, Mapping) or not isinstance(settings.get("path"), str):
            return ["workload.file: must be `{path: workload.py, settings: {…}}`"]
        extra = set(settings) - {"path", "settings"}
        return [f"workload.file: {unknown(key, ('path', 'settings'), 'key')}" for key in sorted(extra)]
    if name not in WORKLOADS:
        return [f"workload: {unknown(name, ('file', *WORKLOADS), 'workload')}"]
    if settings is not None and not isinstance(settings, Mapping):
        return [f"workload.{name}: must be a mapping of settings, but got {settings!r}"]
    try:
        find(WORKLOADS, Step.from_json(reference), "workload")
    except SpecError as error:
        return [f"workload.{name}: {text}" for text in error.problems]
    return []


def _threads_of(target: Any) -> tuple[int, ...] | None:
    """The thread counts that are compared; None where the target is wrong, which the model tells."""
    try:
        return Target.model_validate(_as_target(target)).threads
    except ValidationError:
        return None


def _candidate_problems(candidates: Any, threads: tuple[int, ...] | None) -> list[str]:
    """What is wrong with the recipes: unknown members, wrong settings, techniques in an impossible order, and
    other thread counts than the target's: the baselines run on those."""
    if not isinstance(candidates, list):
        return []
    problems = []
    for position, steps in enumerate(candidates):
        if not isinstance(steps, list):
            continue  # the type is told by the model
        where = f"candidates.{position}"
        try:
            recipe = Recipe.from_json(steps)
            check_recipe(recipe)
            own = complete(recipe).backend.settings["threads"]
            if threads is not None and own not in threads:
                problems.append(f"{where}: {_other_threads(recipe.backend.name, own, threads)}")
        except SpecError as error:
            problems += [f"{where}: {text}" for text in error.problems]
        except (TypeError, ValueError, AttributeError):
            problems.append(f"{where}: a recipe must be a list of steps, each `name` or `{{name: {{…}}}}`")
    return problems


def _other_threads(backend: str, own: int, threads: tuple[int, ...]) -> str:
    asked = ", ".join(map(str, threads))
    remedy = f"set `{backend}: {{threads: {threads[0]}}}`, or add {own} to `target.threads`"
    return f"`threads` must be one of `target.threads` ({asked}), but it is {own}; {remedy}"


def _space_problems(space: Any) -> list[str]:
    """What is wrong with the search's space: unknown techniques or settings, values that cannot be."""
    if not isinstance(space, Mapping):
        return []
    trained = {name for name, cls in TECHNIQUES.items() if "epochs" in cls.model_fields}
    problems = []
    for name, settings in space.items():
        if name not in trained:
            problems.append(f"space: {unknown(name, trained, 'technique with training')}")
        elif isinstance(settings, Mapping):
            problems += _value_problems(name, settings)
    return problems


def _value_problems(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Of one technique in the space: what the search sets, and values that cannot be, alone or together."""
    problems = [
        f"space.{name}: `{own}` is the search's to set" for own in ("epochs", "seed") if own in settings
    ]
    known = {key: found for key, values in settings.items() if (found := _known_values(values))}
    ends = {k: (v[0], v[-1]) if isinstance(settings[k], Mapping) else v for k, v in known.items()}
    first = {key: values[0] for key, values in known.items()}
    together = (dict(zip(ends, chosen, strict=True)) for chosen in itertools.product(*ends.values()))
    one_by_one = ({**first, key: value} for key, values in known.items() for value in values)
    for chosen in (*together, *one_by_one):
        try:
            TECHNIQUES[name].from_settings(chosen)
        except ValidationError as error:
            fields = TECHNIQUES[name].model_fields
            wrong = [e for e in error.errors() if e["type"] != "missing"]  # the search gives the others
            problems += [f"space.{name}: {problem(e, fields)}" for e in wrong]
    return list(dict.fromkeys(problems))


def _known_values(given: Any) -> tuple[Any, ...]:
    """The values that are listed, or of a range; none where the model tells what is wrong."""
    with suppress(ValueError):
        found = _as_values(given)
        return tuple(found) if isinstance(found, list | tuple) else ()
    return ()


def check_recipe(recipe: Recipe) -> None:
    """Raises: SpecError unless every step is known and the forms follow each other (`network.WAYS`)."""
    from pareflow.network import FORMS, WAYS

    found = members(recipe)
    forms = [form for m in found for form in (getattr(m, "form"), getattr(m, "gives", None)) if form]  # noqa: B009
    if forms != sorted(forms, key=FORMS.index):
        ways = " → ".join(f"{member.name} ({getattr(member, 'form')})" for member in found)  # noqa: B009
        raise SpecError(recipe.label, [f"forms must follow {WAYS}, but the steps are {ways}"])
