"""The networks that `serving.py` serves, as packages: a BERT of six layers, and one that takes no time."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pipeline_run import DATA_DIR

from pareflow.catalog import BACKENDS, installed_version
from pareflow.stages import jobs
from pareflow.stages.building import variant_of
from pareflow.store import Store
from pareflow.variant import Recipe, Step, digest
from pareflow.workload import Arrays, load

LENGTH = 64
BACKEND = Step("onnxruntime", {"threads": 1})
FOLDER = DATA_DIR / "serving-bench"


def bert(folder: Path, seed: int = 0) -> dict[str, Any]:
    """6 layers, 256 wide, 64 tokens, 27 MiB, random weights by a seed, exported as transformers' users do."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
    network = BertForSequenceClassification(BertConfig(vocab_size=8000, num_labels=8, **sizes)).eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            return self.network(input_ids, attention_mask).logits

    ids = np.random.default_rng(0).integers(1, 8000, (128, LENGTH))
    mask = np.ones_like(ids)
    names = ["input_ids", "attention_mask"]
    torch.onnx.export(
        Logits().eval(),
        (torch.from_numpy(ids[:2]), torch.from_numpy(mask[:2])),
        folder / "model.onnx",
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch"} for name in (*names, "logits")},
        dynamo=False,
    )
    np.savez(folder / "arrays.npz", input_ids=ids, attention_mask=mask)
    return {"samples": {name: name for name in names}}


def tiny(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Two layers, 64 wide, random weights by the seed: some 5 µs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    chance = np.random.default_rng(seed)
    weights = [chance.standard_normal((64, 64), dtype=np.float32) / 8 for _ in range(2)]
    sizes: list[str | int | None] = ["batch", 64]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w1"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "model.onnx",
    )
    np.savez(folder / "arrays.npz", samples=chance.standard_normal((128, 64), dtype=np.float32))
    return {"samples": "samples"}


MAKERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "bert": bert,
    "tiny": tiny,
    "bert-2": partial(bert, seed=1),
    "tiny-2": partial(tiny, seed=1),
}
OTHER = {"bert": "bert-2", "tiny": "tiny-2"}
"""Of each network another that takes the same requests."""


def graph(name: str) -> Path:
    """The ONNX file, made where it is not there."""
    _made(name)
    return FOLDER / name / "model.onnx"


def rows(name: str) -> list[Arrays]:
    """Requests of one sample each."""
    _made(name)
    with np.load(FOLDER / name / "arrays.npz") as stored:
        arrays = {("x" if key == "samples" else key): stored[key] for key in stored.files}
    count = len(next(iter(arrays.values())))
    return [{key: array[i : i + 1] for key, array in arrays.items()} for i in range(count)]


def package(name: str) -> Path:
    """What would be registered of it."""
    settings = _made(name)
    folder, root = FOLDER / name, FOLDER / "store"
    sizes = {"calibration": 16, "search": 32, "training": 8}
    onnx = {"model": "model.onnx", "arrays": "arrays.npz", "targets": None, "predicts": "value", **sizes}
    reference = {"onnx": {**onnx, **settings}}
    recipe = Recipe((), BACKEND)
    workload = load(reference, folder)
    key = digest("package", name, workload.digest)
    found = Store(root).find(key)
    if found is None:
        about = (reference, str(folder), str(root))
        jobs.train(*about)
        jobs.build(*about, recipe.to_json())
        variant = variant_of(recipe, workload.digest).id
        requirements = [
            f"{one}=={installed_version(one)}" for one in ("numpy", *BACKENDS["onnxruntime"].requires)
        ]
        lineage = {
            "pipeline": name,
            "variant": variant,
            "recipe": recipe.to_json(),
            "requirements": requirements,
        }
        jobs.package(*about, key, variant, lineage)
        found = Store(root).find(key)
    assert found is not None  # it has just been made
    return found


def _made(name: str) -> dict[str, Any]:
    folder = FOLDER / name
    settings = folder / "settings.json"
    if not settings.exists():
        folder.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps(MAKERS[name](folder)))
    document: dict[str, Any] = json.loads(settings.read_text())
    return document
