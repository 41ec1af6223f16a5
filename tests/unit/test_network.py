"""The four forms of a network: saved, loaded, converted, and checked on the way."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pareflow import graph_file, large_graphs, network
from pareflow.compiler import OnnxRuntime, TorchEager
from pareflow.compiler.backend import place
from pareflow.errors import BadOutputError, ExportError, UnsuitableError, WorkloadError
from pareflow.model import Simplification
from pareflow.model.quantization import qat_int8
from pareflow.network import FILES, FORMS, Form
from pareflow.workload import Arrays, LoadedWorkload, Samples, Split, Splits, Workload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
WAYS: list[tuple[Form, Form]] = [
    ("torch", "onnx"),
    ("onnx", "openvino"),
    ("torch", "exported"),
    ("onnx", "exported"),
]


class DependsOnTheBatch(nn.Module):
    """Its graph is traced for the batch it sees first."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale = float(images.sum()) if len(images) > 2 else 1.0
        return images.flatten(1) * scale


class ChangesItsInput(nn.Module):
    """It centres what it is given, in place: a second time it finds something else."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(images.sub_(0.5).flatten(1))
        return found


class HasNoOnnx(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = torch.linalg.eigvals(images[:, 0]).real
        return values


@pytest.mark.parametrize("form", FORMS)
def test_form_is_told_by_the_files(form: Form, tmp_path: Path, forms: Forms) -> None:
    assert network.form_of(forms("images")[form]) == form


@pytest.mark.parametrize("form", FORMS)
def test_saved_network_loads_as_it_was(form: Form, tmp_path: Path, forms: Forms) -> None:
    folder = forms("images")[form]
    network.save(network.load(form, folder), form, tmp_path)
    assert (tmp_path / FILES[form]).stat().st_size > 0
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name


def test_torch_converts_to_openvino_in_one_go(tmp_path: Path, forms: Forms, load_tiny: Load) -> None:
    network.convert(forms("images")["torch"], "openvino", load_tiny("images"), tmp_path)
    assert network.form_of(tmp_path) == "openvino"


@pytest.mark.parametrize("name", ["images", "texts"])
def test_exported_graph_takes_any_batch(name: str, tmp_path: Path, forms: Forms, load_tiny: Load) -> None:
    workload = load_tiny(name)
    OnnxRuntime().compile(forms(name)["onnx"], tmp_path)
    session = OnnxRuntime().load(tmp_path)
    for batch_size in (1, 5, 17):
        assert session.run(workload.example(batch_size))["output"].shape[0] == batch_size


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (DependsOnTheBatch(), r"must agree with its source.*`output` differs by .* at images 3×1×8×8"),
        (HasNoOnnx(), r"must become an ONNX graph, but torch\.onnx\.export raised"),
    ],
    ids=["control flow", "operator"],
)
def test_network_that_does_not_export_is_told(
    module: nn.Module, said: str, tmp_path: Path, load_tiny: Load
) -> None:
    network.save(module, "torch", tmp_path)
    with pytest.raises(ExportError, match=said) as caught:
        network.convert(tmp_path, "onnx", load_tiny("images"), tmp_path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("form", ["onnx", "exported"])
def test_network_that_changes_its_input_in_place_converts_and_leaves_it(
    form: Form, tmp_path: Path, load_tiny: Load
) -> None:
    workload = load_tiny("images")
    network.save(ChangesItsInput().eval(), "torch", tmp_path)
    feeds = workload.example(2)
    before = {name: array.copy() for name, array in feeds.items()}
    (tmp_path / "made").mkdir()
    network.convert(tmp_path, form, workload, tmp_path / "made")
    TorchEager().load(tmp_path).run(feeds)
    for run in (network.runner(tmp_path), network.runner(tmp_path / "made")):
        run(feeds)
    for name, array in feeds.items():
        np.testing.assert_array_equal(array, before[name])


def test_openvino_model_is_held_to_its_graph(
    tmp_path: Path, forms: Forms, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that loses a sign is caught; the folder is written, but nothing goes on from it."""
    import openvino

    plain = openvino.convert_model

    def turned(path: Path) -> Any:
        model = plain(path)
        result = model.get_results()[0]
        source = result.input_value(0)
        result.input(0).replace_source_output(openvino.opset13.negative(source).output(0))
        model.validate_nodes_and_infer_types()
        model.outputs[0].get_tensor().set_names({"output"})
        return model

    monkeypatch.setattr(openvino, "convert_model", turned)
    said = r"exported OpenVINO model must agree .*`output` differs by 2 of .*cosine -1.* at images 1×1×8×8"
    with pytest.raises(ExportError, match=said):
        network.convert(forms("images")["onnx"], "openvino", load_tiny("images"), tmp_path)


def test_simplified_graph_is_held_to_its_source(
    forms: Forms, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxslim = pytest.importorskip("onnxslim")

    def wrong(graph: Any) -> Any:
        for weight in graph.graph.initializer:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
        return graph

    monkeypatch.setattr(onnxslim, "slim", wrong)
    with pytest.raises(
        UnsuitableError, match=r"`simplification` must give a graph that agrees .*`output` differs by"
    ):
        Simplification().apply(network.load("onnx", forms("images")["onnx"]), load_tiny("images"))


def test_large_graph_keeps_its_weights(
    tmp_path: Path, forms: Forms, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are saved beside it, also in the folders of checks that are gone when it is stored.

    What lies in the working directory is another matter.
    """
    pytest.importorskip("onnxslim")
    monkeypatch.setattr(large_graphs, "LARGE_BYTES", 2**10)
    folder, workload = forms("images")["onnx"], load_tiny("images")
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "model.onnx.data").touch()
    monkeypatch.chdir(elsewhere)
    slim = Simplification().apply(network.load("onnx", folder), workload)
    network.save(slim, "onnx", tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size > 2**10
    feeds = workload.example(3)
    expected = network.runner(folder)(feeds)["output"]
    assert network.runner(tmp_path)(feeds)["output"] == pytest.approx(expected, abs=1e-5)


def test_workload_may_export_by_itself(
    tmp_path: Path, forms: Forms, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = load_tiny("images")
    calls: list[Path] = []

    def export(self: Any, module: nn.Module, loaded: LoadedWorkload, path: Path) -> None:
        calls.append(path)
        network.export_onnx(module, loaded, path)

    monkeypatch.setattr(type(workload.definition), "export", export, raising=False)
    network.convert(forms("images")["torch"], "onnx", workload, tmp_path)
    assert calls == [tmp_path / "model.onnx"]


class TwoHeads(nn.Module):
    """Two answers of one shape; `arrange` makes of them what `forward` gives."""

    def __init__(self, arrange: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.arrange = nn.Linear(4, 3), nn.Linear(4, 3), arrange

    def forward(self, rows: torch.Tensor) -> Any:
        return self.arrange(self.first(rows), self.second(rows))


class Rows(Workload):
    """Rows of numbers, which the network takes as `rows`; `varying` axes are what `dynamic_axes` says."""

    metric: ClassVar[str] = "rmse"
    varying: tuple[str, ...] = ()
    axis: int = 0

    def data(self) -> Splits:
        raise NotImplementedError

    def network(self) -> nn.Module:
        raise NotImplementedError

    def preprocess(self, samples: Samples) -> Arrays:
        return {"rows": np.asarray(samples)}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        raise NotImplementedError

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        return {name: {self.axis: "varying"} for name in self.varying}


def rows(*varying: str, axis: int = 0, width: int = 4, kind: str = "float32") -> LoadedWorkload:
    part = Split(np.random.default_rng(0).normal(size=(8, width)).astype(kind))
    return LoadedWorkload(Rows(varying=varying, axis=axis), "", "", Splits(part, part, part, part))


def by_key(first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"aux": first, "logits": second}


def both(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return first, second


def one_key(first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"logits": first + second}


def twice(first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"z": second, "a": second.clone()}


@pytest.mark.parametrize(
    ("arrange", "varying", "names"),
    [
        (by_key, ["rows", "logits", "aux"], ["aux", "logits"]),
        (by_key, ["logits"], ["aux", "logits"]),
        (by_key, [], ["aux", "logits"]),
        (both, [], ["output", "output_1"]),
        (both, ["output_1", "output"], ["output", "output_1"]),
        (one_key, [], ["logits"]),
        (twice, [], ["z", "a"]),
    ],
    ids=["turned axes", "some axes", "mapping", "tuple", "tuple with axes", "one key", "one answer twice"],
)
def test_every_form_calls_each_output_as_torch_does(
    arrange: Any, varying: list[str], names: list[str], tmp_path: Path
) -> None:
    workload = rows(*varying)
    feeds = workload.example(5)
    folders = {form: tmp_path / form for form in FORMS}
    for folder in folders.values():
        folder.mkdir()
    network.save(TwoHeads(arrange), "torch", folders["torch"])
    expected = network.runner(folders["torch"])(feeds)
    for source, form in (
        ("torch", "onnx"),
        ("onnx", "openvino"),
        ("torch", "exported"),
        ("onnx", "exported"),
    ):
        network.convert(folders[source], form, workload, folders[form])  # type: ignore[index, arg-type]
        got = network.runner(folders[form])(feeds)  # type: ignore[index]
        assert list(got) == list(expected) == names
        for name in names:
            np.testing.assert_allclose(got[name], expected[name], atol=1e-6)


class Sum(nn.Module):
    """The sum of a row, however long."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.sum(1, keepdim=True)


def test_batch_varies_beside_the_axes_that_the_workload_names(tmp_path: Path) -> None:
    """Of a graph of a fixed batch each request would be filled up, and its latency be of more samples."""
    workload = rows("rows", axis=1)
    network.export_onnx(Sum(), workload, tmp_path / FILES["onnx"])
    (port,) = graph_file.ports(network.load("onnx", tmp_path)).ports
    assert port.shape == (None, None)
    assert qat_int8._axes(workload) == {"rows": {0: "batch", 1: "varying"}}


def test_axis_that_varies_may_be_longer_than_most(tmp_path: Path) -> None:
    """Raw audio: 9,000 samples, and up to twice as many."""
    workload = rows("rows", axis=1, width=9000)
    network.save(Sum(), "torch", tmp_path)
    network.convert(tmp_path, "exported", workload, tmp_path)
    longest = np.ones((2, 18000), np.float32)
    assert network.runner(tmp_path)({"rows": longest})["output"].tolist() == [[18000], [18000]]


def test_weights_in_a_file_each_are_carried_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's exporter leaves them over 2 GiB: one file beside the graph, in the artifact too."""

    def scattered(self: Any, module: nn.Module, loaded: LoadedWorkload, path: Path) -> None:
        network.export_onnx(module, loaded, path)
        onnx.save_model(
            onnx.load_model(path),
            path,
            save_as_external_data=True,
            size_threshold=0,
            all_tensors_to_one_file=False,
        )
        assert len(list(path.parent.iterdir())) > 3

    monkeypatch.setattr(Rows, "export", scattered, raising=False)
    folders = [tmp_path / name for name in ("torch", "onnx", "artifact")]
    for folder in folders:
        folder.mkdir()
    module, feeds = nn.Sequential(nn.Linear(4, 512), nn.Linear(512, 3)), rows().example(3)
    network.save(module, "torch", folders[0])
    monkeypatch.chdir(folders[0])
    (folders[0] / "model.onnx.data").touch()  # in the working directory, where it is another's
    network.convert(folders[0], "onnx", rows(), folders[1])
    assert sorted(file.name for file in folders[1].iterdir()) == ["model.onnx", "model.onnx.data"]
    OnnxRuntime().compile(folders[1], folders[2])
    shutil.rmtree(folders[1])
    expected = network.run_torch(module, feeds)["output"]
    np.testing.assert_allclose(OnnxRuntime().load(folders[2]).run(feeds)["output"], expected, atol=1e-5)


def test_export_of_a_half_precision_is_held_to_its_own_steps(tmp_path: Path) -> None:
    """The runtime rounds elsewhere, by more than a thousandth of the largest output."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)) for _ in range(30)]
    module = nn.Sequential(*layers).half()
    workload = rows(width=64, kind="float16")
    network.save(module, "torch", tmp_path)
    network.convert(tmp_path, "onnx", workload, tmp_path)
    with pytest.raises(ExportError, match=r"within 0\.001"):
        network.check_export(module, tmp_path / FILES["onnx"], workload)


def test_file_on_another_device_is_copied(tmp_path: Path) -> None:
    """As on a file system without hard links."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        (file := Path(folder) / "model.onnx").write_bytes(b"graph")
        if file.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("there is one file system here")
        place(file, tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == b"graph"


def test_axes_of_what_the_network_neither_takes_nor_gives_are_refused(tmp_path: Path) -> None:
    said = r"`dynamic_axes\(\)` must name inputs .* it names `logits`, and there are `rows`, `output`"
    with pytest.raises(WorkloadError, match=said):
        network.export_onnx(nn.Linear(4, 3), rows("rows", "logits"), tmp_path / "model.onnx")


def test_forward_that_raises_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"must become .* its `forward` raised RuntimeError"):
        network.export_onnx(nn.Linear(5, 3), rows(), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (1, ["output"]),
        ((1, 2), ["output", "output_1"]),
        ([1, 2], ["output", "output_1"]),
        ({"logits": 1, "hidden": 2}, ["logits", "hidden"]),
    ],
    ids=["one", "tuple", "list", "mapping"],
)
def test_outputs_are_named(given: Any, names: list[str]) -> None:
    assert list(network.name_outputs(given, np.asarray)) == names


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.asarray([[1.0, np.nan], [np.inf, 2.0]]), "`output` has 2 NaN or infinite values"),
        (np.ones((3, 2)), r"`output` has shape \(3, 2\) for 2 samples"),
        (np.float32(1.0).reshape(()), r"`output` has shape \(\) for 2 samples"),
    ],
    ids=["not finite", "rows", "scalar"],
)
def test_bad_outputs_are_told(array: np.ndarray, said: str) -> None:
    network.check_outputs({"fine": np.ones((2, 1))}, samples=2)
    with pytest.raises(BadOutputError, match=said):
        network.check_outputs({"fine": np.ones((2, 1)), "output": array}, samples=2)


def test_texts_and_masked_logits_are_good_outputs() -> None:
    masked = np.asarray([[0.0, -np.inf], [-np.inf, 1.0]])
    network.check_outputs({"label": np.asarray(["cat", "dog"], object), "output": masked}, samples=2)
    with pytest.raises(BadOutputError, match="`output` has 2 NaN or infinite values"):
        network.check_outputs({"output": np.asarray([[0.0, -np.inf], [-np.inf, -np.inf]])}, samples=2)


@pytest.mark.parametrize("form", FORMS)
def test_code_version_is_stable(form: Form) -> None:
    assert network.code_version(form) == network.code_version.__wrapped__(form)


def test_code_version_is_of_what_converts_to_the_form_whatever_torchs_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenVINO, installed later, makes no graph anew; nor do nodes with a GPU make others."""

    def versions(**installed: str) -> dict[str, str]:
        monkeypatch.setattr(network, "installed_version", installed.get)
        return {form: network.code_version.__wrapped__(form) for form in FORMS}

    plain = versions(torch="2.12.0+cpu", onnx="1.23.2")
    assert versions(torch="2.12.0+cu130", onnx="1.23.2") == plain
    with_openvino = versions(torch="2.12.0", onnx="1.23.2", openvino="2026.4.1")
    assert {form for form in FORMS if with_openvino[form] != plain[form]} == {"openvino"}
    newer = versions(torch="2.13.0", onnx="1.23.2")
    assert {form for form in FORMS if newer[form] != plain[form]} == {"onnx", "exported", "openvino"}
