"""A workload's torch module as it is stored: inputs by name, whole in a pickle, answers of their own kind."""

import io
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from pareflow import network, torch_network
from pareflow.compiler import TorchEager
from pareflow.compiler.autocast import exported as under_autocast
from pareflow.errors import WorkloadError
from pareflow.exported import runner as program_runner
from pareflow.model import Distillation
from pareflow.model.shapes import untrained
from pareflow.model.training import Batch, task_loss
from pareflow.network import FILES, Form
from pareflow.serving import pickled
from pareflow.workload import Arrays, LoadedWorkload, Samples, Split, Splits, Workload


class MaskedSum(nn.Module):
    """The sum of what the mask lets through, scaled by kind; its parameters are in BERT's order."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.scale = nn.Linear(1, 3)

    def forward(
        self, values: torch.Tensor, mask: torch.Tensor, unused: Any = None, kinds: torch.Tensor | None = None
    ) -> torch.Tensor:
        assert unused is None
        kept = values * mask if kinds is None else values * mask * (1 + kinds)
        scores: torch.Tensor = self.scale(kept.sum(1, keepdim=True))
        return scores


class Tokens(Workload):
    """What a tokenizer gives, in its own order: the all-zero kinds come before the mask."""

    metric: ClassVar[str] = "accuracy"
    names: tuple[str, ...] = ("values", "kinds", "mask")

    def data(self) -> Splits:
        raise NotImplementedError

    def network(self) -> nn.Module:
        raise NotImplementedError

    def preprocess(self, samples: Samples) -> Arrays:
        values = np.asarray(samples)
        made = {"values": values, "kinds": np.zeros_like(values), "mask": np.ones_like(values)}
        return {name: made[name] for name in self.names}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        raise NotImplementedError


@pytest.fixture
def tokens() -> LoadedWorkload:
    part = Split(np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32), np.arange(8) % 3)
    return LoadedWorkload(Tokens(), "", "", Splits(part, part, part, part))


def test_inputs_that_forward_names_are_given_by_name_in_every_form(
    tokens: LoadedWorkload, tmp_path: Path
) -> None:
    """By position the mask would be zero, and every form would agree on it."""
    plain = MaskedSum()
    feeds = tokens.example(5)
    tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
    expected = plain(**tensors).detach().numpy()
    stored = torch_network.as_stored(plain, list(feeds))
    forms: tuple[Form, ...] = ("torch", "onnx", "exported")
    for form in forms:
        (tmp_path / form).mkdir()
    network.save(stored, "torch", tmp_path / "torch")
    for form in forms[1:]:
        network.convert(tmp_path / "torch", form, tokens, tmp_path / form)
    runs = [network.runner(tmp_path / form) for form in forms]
    for run in (*runs, TorchEager().load(tmp_path / "torch").run):
        np.testing.assert_allclose(run(feeds)["output"], expected, atol=1e-6)
    graph = onnx.load_model(tmp_path / "onnx" / FILES["onnx"]).graph
    assert {port.name for port in graph.input} <= set(feeds)
    part = tokens.split("train").take(np.arange(5))
    loss = task_loss(tokens)(stored, Batch("train", np.arange(5), tensors, torch.from_numpy(part.labels())))
    wanted = nn.functional.cross_entropy(torch.from_numpy(expected), torch.from_numpy(part.labels()))
    assert loss.item() == pytest.approx(wanted.item())


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (MaskedSum(), ["values", "mask"]),
        (MaskedSum(), ["rows", "kept"]),
        (MaskedSum(), ["values", "kept"]),
        (nn.DataParallel(nn.Linear(2, 2)), ["b", "a"]),
    ],
    ids=["in order", "other names", "one name at its place", "any number"],
)
def test_what_is_right_by_position_stays_as_it_is(module: nn.Module, inputs: Sequence[str]) -> None:
    assert torch_network.as_stored(module, inputs) is module


def test_names_that_fit_in_part_and_elsewhere_are_refused() -> None:
    said = (
        r"in the order of `forward`.* it gives values, kinds, seen, and `forward` takes values, mask, unused"
    )
    for ask in (torch_network.check, torch_network.as_stored):
        with pytest.raises(WorkloadError, match=said):
            ask(MaskedSum(), ["values", "kinds", "seen"])


def test_what_is_given_by_name_may_be_opened_from_a_registry(tmp_path: Path) -> None:
    module = torch_network.as_stored(nn.Bilinear(2, 3, 4), ["input2", "input1"])
    network.save(module, "torch", tmp_path)
    pickled.check(tmp_path)
    feeds = {"input2": np.ones((5, 3), np.float32), "input1": np.ones((5, 2), np.float32)}
    assert network.runner(tmp_path)(feeds)["output"].shape == (5, 4)


class Learned(Tokens):
    """The same, with what techniques train beside the network itself."""

    def network(self) -> nn.Module:
        return MaskedSum(self.seed)

    def train(self, network: nn.Module, data: Split) -> nn.Module:
        return network

    def students(self) -> dict[str, Callable[[], nn.Module]]:
        return {"small": MaskedSum}


def test_students_and_what_is_trained_anew_take_inputs_as_the_network_does(tokens: LoadedWorkload) -> None:
    learned = LoadedWorkload(Learned(), "", "", tokens.splits)
    stored = torch_network.as_stored(MaskedSum(), list(tokens.example(1)))
    student = Distillation(student="small")._student(stored, learned)
    for made in (student, untrained(learned, stored, seed=1)):
        assert isinstance(made, torch_network.ByName)
        assert made.takes == ("values", "kinds", "mask")


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_are_stored_as_they_are_used(norm: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    torch_network.check(module, ["rows"])
    assert parametrize.is_parametrized(module[0])  # it is trained so
    module(torch.rand(16, 4)).sum().backward()
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    expected = module.eval()(torch.from_numpy(rows)).detach().numpy()
    network.save(torch_network.as_stored(module, ["rows"]), "torch", tmp_path)
    np.testing.assert_allclose(network.runner(tmp_path)({"rows": rows})["output"], expected, atol=1e-6)
    assert all(weight.requires_grad for weight in network.load("torch", tmp_path).parameters())


def with_lambda() -> nn.Module:
    module = nn.Linear(2, 2)
    module.scale = lambda x: x  # type: ignore[assignment]
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make", [with_lambda, lambda: torch.jit.script(nn.Linear(2, 2))], ids=["lambda", "script"]
)
def test_network_that_no_pickle_holds_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(WorkloadError, match=r"can be pickled whole.*torch\.save raised .*ONNX"):
        torch_network.check(make(), ["input"])


def test_network_saved_on_a_device_opens_without_one(tmp_path: Path) -> None:
    network.save(nn.Linear(2, 2), "torch", tmp_path)
    path, moved = tmp_path / FILES["torch"], io.BytesIO()
    with zipfile.ZipFile(path) as given, zipfile.ZipFile(moved, "w") as made:
        for name in given.namelist():
            content = given.read(name)
            if name.endswith("data.pkl"):
                content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                assert b"cuda:0" in content
            made.writestr(name, content)
    path.write_bytes(moved.getvalue())
    assert next(network.load("torch", tmp_path).parameters()).device.type == "cpu"


def test_class_that_is_nowhere_to_be_imported_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `sys.path` was changed within `network()`, in the process of the next step."""
    module = ModuleType("fetched_by_network")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.Net = type("Net", (nn.Linear,), {"__module__": module.__name__})  # type: ignore[attr-defined]
    network.save(module.Net(2, 2), "torch", tmp_path)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(WorkloadError, match=r"No module named 'fetched_by_network'.* at the top of the work"):
        network.load("torch", tmp_path)


class Kinds(nn.Module):
    """Answers of several kinds: the first is no float32."""

    def forward(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        ids = rows.long() + 2**24 + 1
        return {"ids": ids, "large": ids > 2**24, "double": rows.double(), "half": rows.half(), "rows": rows}


def test_answers_keep_their_kind(tokens: LoadedWorkload, tmp_path: Path) -> None:
    """An id above 2^24 is no float32; halves, of which numpy lacks bfloat16, become float32."""
    kinds = {"ids": "int64", "large": "bool", "double": "float64", "half": "float32", "rows": "float32"}
    rows = LoadedWorkload(Tokens(names=("values",)), "", "", tokens.splits)
    feeds = rows.example(3)
    network.save(Kinds(), "torch", tmp_path)
    network.convert(tmp_path, "exported", rows, tmp_path)
    program = network.load("exported", tmp_path)
    (tmp_path / FILES["exported"]).unlink()
    for run in (network.runner(tmp_path), TorchEager().load(tmp_path).run, program_runner(program)):
        found = run(feeds)
        assert {name: array.dtype.name for name, array in found.items()} == kinds
        np.testing.assert_array_equal(found["ids"], feeds["values"].astype(np.int64) + 2**24 + 1)
    halved = program_runner(under_autocast(program, "bfloat16", "cpu"))(feeds)
    np.testing.assert_array_equal(halved["ids"], feeds["values"].astype(np.int64) + 2**24 + 1)
