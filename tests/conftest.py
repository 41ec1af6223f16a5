"""What the tests share: tiny workloads, builders of records, and one trained run that most can start from."""

import dataclasses
import functools
import importlib
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from filelock import FileLock
from hypothesis import settings
from onnx import TensorProto, helper

import pareflow  # noqa: F401  (fills the catalog)
from flows.environment import set_environment
from pareflow import network
from pareflow import spec as specs
from pareflow.catalog import BACKENDS, TECHNIQUES, WORKLOADS, installed_version
from pareflow.compiler import Backend
from pareflow.gate import Evidence
from pareflow.measurement import Measurement, Quality, Ran
from pareflow.measuring.environment import environment
from pareflow.network import Form
from pareflow.stages import jobs
from pareflow.stages.building import variant_of
from pareflow.stages.instruments import machine_ceilings
from pareflow.stages.run import Row, Run
from pareflow.store import Store
from pareflow.variant import Recipe, Step, digest, file_digest
from pareflow.workload import LoadedWorkload, define, load
from tests import production

set_environment()  # no telemetry, whatever a test imports
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # tiny networks gain nothing by more
settings.register_profile("here", deadline=None, derandomize=True)  # a busy machine is no failure
settings.load_profile("here")

RAN = Ran("onnxruntime", "1.0", "float32", "CPU", 1)
Once = Callable[[str, Callable[[], Any]], Any]
"""By name, what a function gives."""
ONNXRUNTIME = Step("onnxruntime", {"threads": 1})


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    _forget_the_name_of_the_test()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    _forget_the_name_of_the_test()


def _forget_the_name_of_the_test() -> None:
    """Which pytest writes into the environment: a nursery serves one environment (`pareflow/nursery.py`)."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)


@pytest.fixture(scope="session", autouse=True)
def _locks_of_our_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests wait for no other user of the machine, and hold up none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAREFLOW_LOCK_DIR", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """What all of pytest's processes share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def once(shared_folder: Path) -> Once:
    """What `make` gives, made by the first of pytest's processes that needs it."""

    def made(name: str, make: Callable[[], Any]) -> Any:
        file = shared_folder / f"{digest(name)[:16]}.once"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                file.write_bytes(pickle.dumps(make()))
        return pickle.loads(file.read_bytes())

    return made


@pytest.fixture(scope="session")
def rated(shared_folder: Path, once: Once) -> Path:
    """A data folder whose store has the rates of this machine on one thread; not to be changed."""
    data_dir = shared_folder / "rated"
    once("rated", lambda: machine_ceilings(data_dir, environment().fingerprint, threads=1, patience_s=1800))
    return data_dir


@pytest.fixture(scope="session")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny workloads and their pipelines, outside the checkout; not to be changed."""
    return _copy_of_workloads(tmp_path_factory.mktemp("workloads") / "tiny")


@pytest.fixture
def own_workloads(tmp_path: Path) -> Path:
    """The same folder for one test to change."""
    return _copy_of_workloads(tmp_path / "tiny")


def _copy_of_workloads(folder: Path) -> Path:
    shutil.copytree(Path(__file__).parent / "workloads", folder, ignore=shutil.ignore_patterns("__pycache__"))
    onnx.save_model(_sums("images", TensorProto.FLOAT, "output", 4), folder / "simple-images.onnx")
    onnx.save_model(_sums("ids", TensorProto.INT64, "output", 2), folder / "simple-texts.onnx")
    return folder


def _sums(name: str, kind: int, output: str, classes: int) -> onnx.ModelProto:
    """The sum of each sample, once per class: a network that somebody else might have made."""
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [-3, -2, -1])
    if name == "ids":
        axes = helper.make_tensor("axes", TensorProto.INT64, [1], [-1])
    copies = helper.make_tensor("copies", TensorProto.INT64, [2], [1, classes])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 1])
    nodes = [
        helper.make_node("Cast", [name], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats", "axes"], ["sums"], keepdims=1),
        helper.make_node("Reshape", ["sums", "shape"], ["column"]),
        helper.make_node("Tile", ["column", "copies"], [output]),
    ]
    sizes: list[str | int] = ["batch", 1, 8, 8] if name == "images" else ["batch", "length"]
    inputs = [helper.make_tensor_value_info(name, kind, sizes)]
    if name == "ids":
        inputs.append(helper.make_tensor_value_info("mask", kind, sizes))
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", classes])]
    graph = helper.make_graph(nodes, "sums", inputs, outputs, [axes, copies, shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(scope="session")
def load_tiny(workloads: Path) -> Callable[[str], LoadedWorkload]:
    """The tiny workload of this name with its data: `images` or `texts`."""

    def loaded(name: str) -> LoadedWorkload:
        return load({"file": {"path": f"{name}.py"}}, workloads)

    return loaded


@pytest.fixture(scope="session")
def forms(
    load_tiny: Callable[[str], LoadedWorkload], once: Once, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Mapping[Form, Path]]:
    """The trained network of a tiny workload in every form, each in its folder; not to be changed.

    OpenVINO's is empty where there is no OpenVINO.
    """

    def make(workload: LoadedWorkload, name: str) -> Mapping[Form, Path]:
        definition = workload.definition
        folders = {form: tmp_path_factory.mktemp(f"{name}-{form}") for form in network.FORMS}
        trained = definition.train(definition.network(), workload.split("train")).eval()
        network.save(trained, "torch", folders["torch"])
        network.convert(folders["torch"], "exported", workload, folders["exported"])
        network.convert(folders["torch"], "onnx", workload, folders["onnx"])
        if installed_version("openvino"):
            network.convert(folders["onnx"], "openvino", workload, folders["openvino"])
        return folders

    @functools.cache
    def made(name: str) -> Mapping[Form, Path]:
        workload = load_tiny(name)  # whoever opens the torch network needs its classes
        found: Mapping[Form, Path] = once(f"forms of {name}", lambda: make(workload, name))
        return found

    return made


@dataclass(frozen=True)
class Compiled:
    """What a backend made of a network that is gone since, and whether it had changed it."""

    folder: Path
    source_kept: bool


@pytest.fixture(scope="session")
def compile_once(
    forms: Callable[[str], Mapping[Form, Path]], once: Once, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Backend, str], Compiled]:
    """Each backend compiles each tiny network once, since some take half a minute; not to be changed."""

    def made(backend: Backend, name: str) -> Compiled:
        source = shutil.copytree(forms(name)[backend.form], tmp_path_factory.mktemp("copy") / "source")
        before = digests(source)
        folder = tmp_path_factory.mktemp("artifact")
        backend.compile(source, folder)
        kept = digests(source) == before
        shutil.rmtree(source)
        return Compiled(folder, kept)

    return lambda backend, name: once(f"{backend.step.label} of {name}", lambda: made(backend, name))


def digests(folder: Path) -> dict[str, str]:
    """By the name of each file of the folder."""
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def rogues(workloads: Path) -> Iterator[None]:
    """The misbehaving members of `workloads/rogues.py`, in the catalog for one test."""
    before = [(family, dict(family)) for family in (TECHNIQUES, BACKENDS, WORKLOADS)]
    define({"file": {"path": "rogue_images.py"}}, workloads)
    _rogue_members(TECHNIQUES, BACKENDS)
    yield
    for family, members in before:
        family.clear()
        family.update(members)


_ROGUES: dict[int, dict[str, Any]] = {}


def _rogue_members(*families: dict[str, Any]) -> None:
    """Put them (back) where the first definition put them: a module's classes are made once per process."""
    for family in families:
        found = {name: cls for name, cls in family.items() if cls.__module__.endswith(".rogues")}
        family.update(_ROGUES.setdefault(id(family), found))


@pytest.fixture(scope="session")
def measured() -> Callable[..., Measurement]:
    """A measurement with these blocks of ms, in a plain environment."""

    def build(*blocks: Sequence[float], variant: str = "candidate", **changes: Any) -> Measurement:
        fields: dict[str, Any] = {
            "environment": "here",
            "batch_size": 1,
            "ran": RAN,
            "load_s": 0.1,
            "first_request_ms": 2.0,
            "peak_memory_mib": 50.0,
            "size_mib": 1.0,
        }
        return Measurement(variant, blocks_ms=tuple(map(tuple, blocks)), **{**fields, **changes})

    return build


@pytest.fixture(scope="session")
def scored() -> Callable[..., Quality]:
    """An accuracy from one 0 or 1 per sample."""

    def build(scores: Sequence[int], variant: str = "candidate", **changes: Any) -> Quality:
        fields: dict[str, Any] = {"metric": "accuracy", "split": "verdict", "split_digest": "same samples"}
        value = sum(scores) / len(scores)
        return Quality(
            variant, value=value, samples=len(scores), scores=tuple(scores), **{**fields, **changes}
        )

    return build


@pytest.fixture(scope="session")
def good(measured: Callable[..., Measurement], scored: Callable[..., Quality]) -> Evidence:
    """Evidence that any sensible SLA promotes: exact, twice as fast, 1 ms in each of 400 requests."""
    return Evidence(
        variant="candidate",
        objective="latency_p50",
        quality=scored([1] * 400),
        original=scored([1] * 400, variant="original"),
        measurement=measured(*[[1.0] * 20] * 20),
        baseline=measured(*[[2.0] * 20] * 20, variant="baseline"),
    )


@dataclass(frozen=True)
class Trained:
    """A run whose baseline stage is done, and its rows."""

    run: Run
    rows: list[Row]

    @property
    def strong(self) -> Row:
        return self.rows[0]

    def with_budget(self, **budget: Any) -> Run:
        """The run with another budget: ids of variants and measurements stay."""
        changed = self.run.spec.budget.model_copy(update=budget)
        return dataclasses.replace(self.run, spec=self.run.spec.model_copy(update={"budget": changed}))


@pytest.fixture(scope="session")
def _trained_once(workloads: Path, shared_folder: Path, once: Once) -> Trained:
    from pareflow.stages.baseline import baseline

    def train() -> Trained:
        document = specs.read(workloads / "images.yaml").to_json()
        spec = specs.parse({**document, "workload": "rogue_images.py"}, "the tests' pipeline")
        run = Run.open(spec, workloads / "images.yaml", shared_folder / "trained")
        return Trained(run, baseline(run))

    found: Trained = once("trained", train)
    return found


@pytest.fixture
def trained(_trained_once: Trained, tmp_path: Path) -> Trained:
    """The tiny images after the baseline stage, with a data folder of its own."""
    data_dir = shutil.copytree(_trained_once.run.data_dir, tmp_path / "data")
    return Trained(dataclasses.replace(_trained_once.run, data_dir=data_dir), _trained_once.rows)


@pytest.fixture(scope="session")
def make_package() -> Callable[..., Path]:
    """What would be registered of a workload's original on a backend, made without a verdict."""

    def made(reference: Mapping[str, Any], folder: Path, root: Path, backend: Step, name: str) -> Path:
        key = f"package-{name}-{backend.name}"
        found = Store(root).find(key)
        if found is None:
            about = (reference, str(folder), str(root))
            workload, store = jobs._loaded(*about)
            recipe = Recipe((), backend)
            jobs.train(*about)
            jobs.build(*about, recipe.to_json())
            variant = variant_of(recipe, workload.digest).id
            names = ("numpy", "psutil", "pydantic", *BACKENDS[backend.name].requires)
            lineage = {
                "pipeline": name,
                "variant": variant,
                "recipe": recipe.to_json(),
                "data_digest": workload.data_digest,
                "workload_digest": workload.digest,
                "environment": {"processor": "this one"},
                "requirements": [f"{name}=={installed_version(name)}" for name in names],
            }
            jobs.package(*about, key, variant, lineage)
            found = store.find(key)
        assert found is not None
        return found

    return made


@pytest.fixture(scope="session")
def packaged(
    workloads: Path, make_package: Callable[..., Path], shared_folder: Path, once: Once
) -> Callable[..., Path]:
    """The package of a tiny workload as a backend runs it; not to be changed."""
    root = shared_folder / "packages"

    def made(name: str, backend: Step = ONNXRUNTIME) -> Path:
        found: Path = once(
            f"package of {name} on {backend.name}",
            lambda: make_package({"file": {"path": f"{name}.py"}}, workloads, root, backend, name),
        )
        return found

    return made


@dataclass(frozen=True)
class Judged:
    """A run with one candidate, after every stage up to the verdict."""

    run: Run
    baselines: list[Row]
    candidate: Row
    finalists: list[Row]


@pytest.fixture(scope="session")
def judged(_trained_once: Trained, once: Once) -> Judged:
    """The tiny images after the validation; its data folder is shared, and not to be changed."""
    from pareflow.stages import optimization, searching, validation

    run, baselines = _trained_once.run, _trained_once.rows

    def judge() -> Judged:
        (row,) = searching.first_rows(run, baselines)
        candidate = optimization.time(run, optimization.make(run, row), baselines)
        return Judged(run, baselines, candidate, validation.validate(run, [*baselines, candidate]))

    found: Judged = once("judged", judge)
    return found


@pytest.fixture
def tiny_document() -> Mapping[str, Any]:
    """The smallest valid pipeline, as YAML gives it."""
    return {"name": "tiny", "workload": "images.py", "sla": {"size": {"max_mib": 1}}}


@pytest.fixture(scope="session")
def checkout() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture
def bench(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of `bench/`, by its name."""
    monkeypatch.syspath_prepend(checkout / "bench")
    return importlib.import_module


@pytest.fixture
def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a file system, or acts as another user")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[production.SetUp]:
    """PostgreSQL, S3, MLflow, Prefect and a worker, up."""
    if not production.SERVERS.exists() or not Path("/usr/lib/postgresql").exists():
        pytest.skip("needs PostgreSQL and the servers' own environment: `make servers`")
    with production.up(tmp_path_factory.mktemp("production") / "servers") as started:
        yield started


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The digits pipeline with one candidate alone; it minimises size, which has no noise."""
    folder = tmp_path_factory.mktemp("digits")
    for name in ("workload.py", "network.py"):
        shutil.copy(production.CHECKOUT / "configs" / "digits" / name, folder)

    def write(candidate: list[str], name: str = "digits") -> Path:
        path = folder / f"{name}-{candidate[0]}.yaml"
        pipeline = {
            "name": name,
            "workload": "workload.py",
            "target": {"device": "cpu", "threads": [1]},
            "objective": "size",
            "sla": {"quality": {"metric": "accuracy", "max_drop": 0.05}, "size": {"max_mib": 2.5}},
            "budget": {"minutes": 5, "quiet_minutes": 8},
            "promotion": "automatic",
            "candidates": [candidate],
        }
        path.write_text(json.dumps(pipeline))  # JSON is YAML
        return path

    return write
