"""What Inductor makes ahead of time, and what it costs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pareflow.compiler import Backend, TorchCompile, autocast, signature
from pareflow.compiler.torch_compile import FACTS
from pareflow.errors import UnsuitableError, WorkloadError
from pareflow.network import Form
from pareflow.workload import LoadedWorkload
from tests.conftest import Compiled

Forms = Callable[[str], Mapping[Form, Path]]
Load = Callable[[str], LoadedWorkload]


@pytest.fixture(scope="module")
def artifact(compile_once: Callable[[Backend, str], Compiled]) -> Path:
    return compile_once(TorchCompile(), "images").folder


def test_without_a_compiler_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TorchCompile.unavailable() is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert TorchCompile.unavailable() == "there is no C++ compiler `no-such-compiler`"


def test_what_compiling_cost_is_kept_and_told(artifact: Path) -> None:
    seconds = json.loads((artifact / FACTS).read_text())["compile_s"]
    assert seconds > 0
    assert TorchCompile().load(artifact).ran().notes == f"compiled in {seconds:.1f} s"


def test_nothing_is_compiled_for_another_batch(artifact: Path, load_tiny: Load) -> None:
    session = TorchCompile().load(artifact)
    files = sorted(path.name for path in artifact.iterdir())
    whole = session.run(load_tiny("images").example(40))["output"]
    for samples in (1, 2, 7):
        part = session.run(load_tiny("images").example(samples))["output"]
        np.testing.assert_allclose(part, whole[:samples], rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in artifact.iterdir()) == files


def test_wrong_inputs_are_refused_before_the_package_reads_them(artifact: Path) -> None:
    session = TorchCompile().load(artifact)
    with pytest.raises(WorkloadError, match=r"`images` must be float32 of shape \(any, 1, 8, 8\), but it is"):
        session.run({"images": np.zeros((2, 1, 8, 4), np.float32)})


def test_a_compiler_that_fails_is_an_unsuitable_network(forms: Forms, tmp_path: Path) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("false",)}),
        pytest.raises(UnsuitableError, match="Inductor must be able to compile the network, but it raised"),
    ):
        TorchCompile().compile(forms("images")["exported"], tmp_path)
    assert not any(tmp_path.iterdir())


def test_autocast_keeps_the_axes_that_vary() -> None:
    """Batch and length vary, the width is 4: as exported, and as exported again."""
    import torch

    class Doubled(torch.nn.Module):
        def forward(self, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"y": feeds["x"] @ feeds["x"].transpose(1, 2)}

    varies = torch.export.Dim.DYNAMIC
    axes = {"x": {0: varies(min=1, max=1024), 1: varies(min=1, max=4096)}}
    feeds = {"x": torch.rand(2, 3, 4)}
    program = torch.export.export(Doubled(), (feeds,), dynamic_shapes=(axes,))
    half = autocast.exported(program, "bfloat16", "cpu")
    for one in (program, half):
        assert signature.of(one) == {"x": {"dtype": "float32", "shape": [None, None, 4]}}
    larger = torch.rand(5, 7, 4)
    exact = larger @ larger.transpose(1, 2)
    rounded = half.module()({"x": larger})["y"]
    assert rounded.dtype == torch.float32
    assert 0 < float((rounded - exact).abs().max()) < 0.05
