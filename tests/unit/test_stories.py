"""The workload of `configs/stories`: llama2.c's network beside an own reading of it in numpy."""

import importlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from pareflow import network, workload
from pareflow.catalog import BACKENDS
from pareflow.compiler import Backend
from pareflow.compiler.torch_compile import TorchCompile
from pareflow.compiler.worker import WorkerBackend
from pareflow.errors import StepFailedError, WorkloadError
from pareflow.serving import language_model
from pareflow.serving.app import App
from pareflow.serving.metrics import Metrics
from pareflow.serving.plan import ServingPlan
from pareflow.serving.settings import Settings
from pareflow.serving.slot import FolderSource, Slot
from pareflow.workload import LoadedWorkload

CODE = Path(__file__).parents[2] / "configs" / "stories"
PUBLISHED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
"""What stories260K tells from nothing at temperature 0, as llama2.c shows it."""
TINY = (8, 12, 2, 4, 2, 300, 16)
"""Width, hidden, layers, heads, key heads, vocabulary, context."""


class Reference:
    """llama2.c's `forward`, token by token with a cache of keys and values, in 64 bits."""

    def __init__(self, path: Path) -> None:
        content = path.read_bytes()
        sizes = np.frombuffer(content, "<i4", 7)
        self.width, hidden, self.layers, self.heads, self.key_heads, vocabulary, context = sizes.tolist()
        self.size = self.width // self.heads
        inner, values, start = self.size * self.key_heads, np.frombuffer(content, "<f4", offset=28), 0

        def take(*shape: int) -> np.ndarray:
            nonlocal start
            start += int(np.prod(shape))
            return values[start - int(np.prod(shape)) : start].reshape(shape).astype(np.float64)

        n, d = self.layers, self.width
        self.embedding = take(abs(vocabulary), d)
        self.norm_a, self.q, self.k, self.v, self.o = (
            take(n, d), take(n, d, d), take(n, inner, d), take(n, inner, d), take(n, d, d)
        )  # fmt: skip
        self.norm_f, self.w1, self.w2, self.w3 = (
            take(n, d),
            take(n, hidden, d),
            take(n, d, hidden),
            take(n, hidden, d),
        )
        self.norm = take(d)
        take(context, self.size)
        self.classifier = self.embedding if vocabulary > 0 else take(abs(vocabulary), d)
        assert start == len(values)

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Of shape (tokens, vocabulary)."""
        cache: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(self.layers)]
        return np.asarray([self._next(token, place, cache) for place, token in enumerate(tokens)])

    def _next(self, token: int, place: int, cache: list[Any]) -> np.ndarray:
        x = self.embedding[token]
        for i in range(self.layers):
            normal = self._normal(x, self.norm_a[i])
            query, key = self._turn(self.q[i] @ normal, place), self._turn(self.k[i] @ normal, place)
            cache[i].append(
                (key.reshape(self.key_heads, -1), (self.v[i] @ normal).reshape(self.key_heads, -1))
            )
            heads = []
            for head, part in enumerate(query.reshape(self.heads, -1)):
                group = head * self.key_heads // self.heads
                weights = np.exp([part @ k[group] / self.size**0.5 for k, _ in cache[i]])
                heads.append(
                    sum(w * v[group] for w, (_, v) in zip(weights / weights.sum(), cache[i], strict=True))
                )
            x = x + self.o[i] @ np.concatenate(heads)
            normal = self._normal(x, self.norm_f[i])
            gate = self.w1[i] @ normal
            x = x + self.w2[i] @ (gate / (1 + np.exp(-gate)) * (self.w3[i] @ normal))
        logits: np.ndarray = self.classifier @ self._normal(x, self.norm)
        return logits

    def _turn(self, vector: np.ndarray, place: int) -> np.ndarray:
        angle = place * 10000.0 ** (-(np.arange(0, len(vector), 2) % self.size) / self.size)
        turned = (vector[0::2] + 1j * vector[1::2]) * np.exp(1j * angle)
        pairs: np.ndarray = np.stack([turned.real, turned.imag], axis=1)
        return pairs.ravel()

    @staticmethod
    def _normal(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        normal: np.ndarray = x / np.sqrt(np.mean(x * x) + 1e-5) * weight
        return normal


def numbers(own_classifier: bool) -> int:
    """The floats of a file of the sizes `TINY`."""
    width, hidden, layers, heads, key_heads, vocabulary, context = TINY
    block = 2 * width + 2 * width * width + 2 * width * (width // heads * key_heads) + 3 * width * hidden
    return vocabulary * width * (1 + own_classifier) + layers * block + width + context * (width // heads)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The code, a tiny network at random, its pieces (bytes, letters, and a few words), and a text."""
    for file in CODE.glob("*.py"):
        (tmp_path / file.name).write_text(file.read_text())
    write(tmp_path, own_classifier=False)
    pieces = [
        b"<unk>",
        b"<s>",
        b"</s>",
        *(b"<0x%02X>" % i for i in range(256)),
        b" ",
        *map(bytes, zip(b"abcdef")),
    ]
    pieces += [b"ab", b"cd", b" ab", b"abcd"]
    pieces += [b"-" * i for i in range(2, 2 + 512 - len(pieces))]
    scored = [struct.pack("<fi", -i, len(piece)) + piece for i, piece in enumerate(pieces)]
    (tmp_path / "tokens.bin").write_bytes(struct.pack("<i", 9) + b"".join(scored))
    letters = np.random.default_rng(0).choice(list("abcdef "), (400, 20))
    (tmp_path / "text.txt").write_text("\n".join("".join(row) for row in letters))
    return tmp_path


def write(folder: Path, own_classifier: bool) -> None:
    sizes = (*TINY[:5], -TINY[5] if own_classifier else TINY[5], TINY[6])
    values = np.random.default_rng(1).normal(size=numbers(own_classifier)).astype("<f4")
    (folder / "weights.bin").write_bytes(struct.pack("<7i", *sizes) + values.tobytes())


def settings(**changes: Any) -> dict[str, Any]:
    given = {
        "weights": "weights.bin",
        "vocabulary": "tokens.bin",
        "text": "text.txt",
        "length": 8,
        "rows": 320,
    }
    return {"file": {"path": "workload.py", "settings": {**given, **changes}}}


@pytest.mark.parametrize("own_classifier", [False, True], ids=["tied", "untied"])
def test_network_answers_as_llama2_c_does(folder: Path, own_classifier: bool) -> None:
    write(folder, own_classifier)
    made = workload.define(settings(), folder).network()
    tokens = [1, 5, 299, 0, 17, 5, 5]
    found = network.run_torch(made, {"tokens": np.asarray([tokens])})["output"][0]
    np.testing.assert_allclose(found, Reference(folder / "weights.bin").logits(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "buffer"),
        (bytes(28), "it begins with"),
        (struct.pack("<7i", *TINY) + bytes(400), "it holds 100"),
    ],
    ids=["empty", "zeros", "short"],
)
def test_file_of_weights_that_is_none_is_told(folder: Path, content: bytes, said: str) -> None:
    (folder / "weights.bin").write_bytes(content)
    with pytest.raises(WorkloadError, match=said):
        workload.define(settings(), folder).network()


@pytest.mark.parametrize("file", ["weights.bin", "tokens.bin", "text.txt"])
def test_absent_file_is_told(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(WorkloadError, match=f"there is no .*{file}"):
        workload.load(settings(), folder)


def test_best_pairs_are_merged_first(folder: Path) -> None:
    """Scores fall with the number: `ab` before `cd` before ` ab` before `abcd`; ö is two bytes."""
    loaded = workload.load(settings(), folder)
    module = __import__("sys").modules[type(loaded.definition).__module__.replace(".workload", ".tokenizer")]
    tokenizer = module.Tokenizer(folder / "tokens.bin", 512)
    pieces = [tokenizer.pieces[token] for token in tokenizer.encode("abcdö")]
    assert pieces == [b" ab", b"cd", b"<0xC3>", b"<0xB6>"]
    assert tokenizer.decode(tokenizer.encode("abcdö ab")) == "abcdö ab"


def test_rows_begin_anew_and_are_told_apart_by_the_next_token(folder: Path) -> None:
    loaded = workload.load(settings(), folder)
    split = loaded.split("search")
    assert isinstance(split.samples, np.ndarray)
    assert split.samples.shape == (200, 8)
    assert set(split.samples[:, 0]) == {1}
    outputs = np.zeros((2, 8, 512), np.float32)
    outputs[0, -1, 7] = outputs[1, -1, 9] = 1
    assert loaded.definition.postprocess({"output": outputs}).tolist() == [7, 9]
    shorter = loaded.definition.at_length(3)
    assert shorter.preprocess(split.samples[:2])["tokens"].tolist() == split.samples[:2, -3:].tolist()
    with pytest.raises(WorkloadError, match="has no sequence axis"):
        loaded.definition.at_length(9)


@pytest.fixture(scope="module")
def stories(checkout: Path) -> LoadedWorkload:
    from pareflow import spec

    config = checkout / "configs" / "stories" / "pipeline.yaml"
    if not (checkout.parent / "shared" / "data" / "models" / "stories260K").is_dir():
        pytest.skip("../shared/data/models/stories260K is not there")
    return workload.load(spec.read(config).workload, config.parent)


@pytest.fixture(scope="module")
def published(stories: LoadedWorkload) -> list[int]:
    """The first 40 tokens after the one that starts a text, by the reference."""
    definition: Any = stories.definition
    reference, tokens = Reference(definition.folder / definition.weights), [1]
    cache: list[Any] = [[] for _ in range(reference.layers)]
    for place in range(40):
        tokens.append(int(reference._next(tokens[-1], place, cache).argmax()))
    return tokens[1:]


def test_published_tokens_are_what_the_weights_give(stories: LoadedWorkload, published: list[int]) -> None:
    definition: Any = stories.definition
    vocabulary = definition.folder / definition.vocabulary
    module = __import__("sys").modules[type(definition).__module__.replace(".workload", ".tokenizer")]
    text = module.Tokenizer(vocabulary, 512).decode(published)
    assert text == PUBLISHED[: len(text)]
    assert len(text) > 90


def backends() -> Iterator[Any]:
    """Each backend with its defaults; workers need minutes."""
    for name, cls in sorted(BACKENDS.items()):
        marks = [pytest.mark.slow] if issubclass(cls, (WorkerBackend, TorchCompile)) else []
        yield pytest.param(name, id=name, marks=marks)


@pytest.mark.parametrize("name", list(backends()))
def test_every_backend_gives_the_published_tokens(
    name: str, stories: LoadedWorkload, published: list[int], in_form: Callable[[Any], Path], tmp_path: Path
) -> None:
    """Rows are filled up behind, where no token looks, to the one length that some backends take.

    TVM's importer takes neither its open length nor, at 64, its Expand (docs/log.md, 2026-11-28): it says so.
    """
    backend: Any = BACKENDS[name]()
    reason = backend.unavailable() or backend.unfit()
    if reason:
        pytest.skip(reason)
    assert isinstance(backend, Backend)
    if name == "tvm":
        with pytest.raises(StepFailedError, match="the worker `tvm` must do as it is asked"):
            backend.compile(in_form(backend.form), tmp_path)
        return
    backend.compile(in_form(backend.form), tmp_path)
    session, tokens = backend.load(tmp_path), [1]
    while len(tokens) <= 40:
        row = np.zeros((1, 64), np.int64)
        row[0, : len(tokens)] = tokens
        tokens.append(int(session.run({"tokens": row})["output"][0, len(tokens) - 1].argmax()))
    assert tokens[1:] == published


@pytest.fixture(scope="module")
def in_form(stories: LoadedWorkload, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """The network's folder in a form, converted once; each conversion is checked on the way."""
    folders: dict[str, Path] = {}

    def made(form: Any) -> Path:
        if form not in folders:
            folders[form] = tmp_path_factory.mktemp(form)
            if form == "torch":
                network.save(stories.definition.network(), "torch", folders[form])
            else:
                source = made("onnx" if form == "openvino" else "torch")
                network.convert(source, form, stories, folders[form])
        return folders[form]

    return made


@pytest.mark.parametrize("form", [pytest.param("exported", marks=pytest.mark.slow), "onnx", "openvino"])
def test_every_form_takes_a_prompt_of_any_length(
    form: Any, stories: LoadedWorkload, published: list[int], in_form: Callable[[Any], Path]
) -> None:
    folder = in_form(form)
    run = network.runner(folder)
    for length in (1, 7, 39):
        answer = run({"tokens": np.asarray([[1, *published][:length]])})["output"]
        assert answer.shape == (1, length, 512)
        assert answer[0].argmax(-1).tolist() == published[:length]


@pytest.mark.parametrize("draft", [None, "prompt_lookup"])
def test_a_server_gives_the_published_tokens(
    draft: str | None,
    stories: LoadedWorkload,
    published: list[int],
    checkout: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As transformers' Llama, packed, behind HTTP: token ids in, token ids out, and again the same."""
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(checkout / "bench")
    models: Any = importlib.import_module("story_models")
    models.write(tmp_path / "checkpoint")
    language_model.pack(tmp_path / "checkpoint", "stories", tmp_path / "package")
    decoding = {"draft": draft, "draft_length": 4, "automatic": False} if draft else {}
    metrics = Metrics()
    slot = Slot(
        FolderSource(tmp_path / "package"), ServingPlan.model_validate({"decoding": decoding}), metrics
    )
    asked = {"input_ids": [1], "max_new_tokens": [len(published)]}
    inputs = [
        {"name": name, "datatype": "INT64", "shape": [1, 1] if name == "input_ids" else [1], "data": data}
        for name, data in asked.items()
    ]
    with TestClient(App([slot], Settings(poll_s=None), metrics).asgi()) as client:
        for _ in range(2):
            answer = client.post("/v2/models/stories/infer", json={"inputs": inputs}).json()
            told = {one["name"]: one["data"] for one in answer["outputs"]}
            assert (told["tokens"], told["lengths"]) == (published, [len(published)])
    assert (slot.hosted.figures["generation"]()["drafted"] if draft else 1) > 0
