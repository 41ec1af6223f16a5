"""A language model behind the server: token ids in, the very tokens that it gives alone out."""

import asyncio
import itertools
import json
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import aclosing
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pareflow.errors import InputError, OverloadedError, PareflowError, SpecError
from pareflow.runtime.decoding import Decoding, Generation, generation
from pareflow.serving import language_model
from pareflow.serving.app import App
from pareflow.serving.executable import Release
from pareflow.serving.generate import Events, encoded, parse, spelled
from pareflow.serving.metrics import Metrics
from pareflow.serving.model import write_manifest
from pareflow.serving.plan import ServingPlan
from pareflow.serving.settings import Settings
from pareflow.serving.slot import FolderSource, Slot
from tests.llamas import llama, see_the_last_token_alone

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
WORDS = [f"w{i}" for i in range(32)]
INFER, GENERATE, STREAM = (f"/v2/models/words/{route}" for route in ("infer", "generate", "generate_stream"))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def checkpoint(folder: Path, seed: int = 0, *, tokens: bool = True, vocabulary: int = 32) -> Path:
    """A tiny Llama of random weights, and a tokenizer of 32 words, as `save_pretrained` writes them."""
    llama(vocabulary, seed, bos_token_id=1).save_pretrained(folder)
    if tokens:
        words = {word: i for i, word in enumerate(WORDS)}
        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The model, another one of its vocabulary, and one without a tokenizer; not to be changed."""
    root, made = tmp_path_factory.mktemp("models"), dict[str, Path]()
    kinds: dict[str, dict[str, Any]] = {"words": {}, "draft": {"seed": 1}, "mute": {"tokens": False}}
    for name, options in kinds.items():
        made[name] = root / name
        source = checkpoint(root / f"{name}-checkpoint", **options)
        language_model.pack(source, "words", made[name])
    return made


@pytest.fixture
def serve(packages: Mapping[str, Path]) -> Iterator[Callable[..., TestClient]]:
    clients: list[TestClient] = []

    def begun(which: str = "words", **plan: Any) -> TestClient:
        metrics = Metrics()
        slot = Slot(FolderSource(packages[which]), ServingPlan(**plan), metrics)
        client = TestClient(App([slot], Settings(poll_s=None), metrics).asgi(), raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        return client

    yield begun
    for client in clients:
        client.__exit__(None, None, None)


def ids(*tokens: int, **options: int) -> dict[str, Any]:
    inputs = [{"name": "input_ids", "datatype": "INT64", "shape": [1, len(tokens)], "data": list(tokens)}]
    inputs += [{"name": k, "datatype": "INT64", "shape": [1], "data": [v]} for k, v in options.items()]
    return {"inputs": inputs}


def tokens(answer: Any) -> list[int]:
    assert answer.status_code == 200, answer.text
    found: list[int] = next(one for one in answer.json()["outputs"] if one["name"] == "tokens")["data"]
    return found


@pytest.fixture(scope="module")
def expected(packages: Mapping[str, Path]) -> list[int]:
    """24 tokens behind 1, 5, 9, by transformers' own loop without a draft."""
    network = language_model.loaded(packages["words"] / "checkpoint")
    prompt = torch.tensor([[1, 5, 9]])
    text = network.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0
    )
    found: list[int] = text[0, 3:].tolist()
    return found


@pytest.mark.parametrize("draft", [None, "small", "prompt_lookup"])
def test_served_tokens_are_those_of_the_model_alone(
    serve: Callable[..., TestClient], packages: Mapping[str, Path], expected: list[int], draft: str | None
) -> None:
    """With a draft and without, and whether or not the prompt was met before."""
    tiers = {"small": str(packages["draft"])} if draft == "small" else {}
    decoding = {"draft": draft, "draft_length": 3, "automatic": False} if draft else {}
    client = serve(tiers=tiers, decoding=decoding)
    for _ in range(3):
        assert tokens(client.post(INFER, json=ids(1, 5, 9, max_new_tokens=24))) == expected
    lines = client.get("/metrics").text.splitlines()
    figures = {line.split('"')[1]: float(line.split()[-1]) for line in lines if 'policy="generation"' in line}
    assert (figures["requests"], figures["tokens"], figures["prefix_hits"]) == (3, 72, 2)
    assert ("drafted" in figures) == (draft is not None)


def test_what_fills_a_prompt_up_is_no_part_of_it(
    serve: Callable[..., TestClient], expected: list[int]
) -> None:
    """Though the request sends no `attention_mask`."""
    client = serve(policies=[{"dynamic_batching": {"pad_axis": 1, "pad_to": [8]}}])
    assert tokens(client.post(INFER, json=ids(1, 5, 9, max_new_tokens=24))) == expected


def test_metadata_says_what_it_takes(serve: Callable[..., TestClient]) -> None:
    found = serve().get("/v2/models/words").json()
    assert found["platform"] == "transformers_float32"
    assert found["inputs"][0]["name"] == "input_ids"
    assert [one["name"] for one in found["outputs"]] == ["tokens", "lengths"]


def test_a_text_is_gone_on_with(serve: Callable[..., TestClient], expected: list[int]) -> None:
    """By the generate extension; the option under both of its names, inside and beside `parameters`."""
    client = serve()
    said = "".join(f" {WORDS[token]}" for token in expected[:8])
    for more in ({"parameters": {"max_new_tokens": 8}}, {"max_tokens": 8}, {"parameters": {"max_tokens": 8}}):
        answer = client.post(GENERATE, json={"text_input": "w1 w5 w9", **more})
        assert answer.json()["text_output"] == said, answer.text
    assert answer.json()["model_name"] == "words"
    assert client.post("/v2/models/words/versions/0/generate", json={"text_input": "w1"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "`text_input` must be a text"),
        ({"text_input": "w1", "parameters": {"stream": True}}, "`stream` must be false where `generate`"),
        ({"text_input": "w1", "parameters": {"min_p": 5}}, "`min_p` is none"),
        ({"text_input": "w1", "parameters": {"top_p": 2}}, "`top_p` must be from 0 to 1"),
        ({"text_input": "w1", "parameters": {"seed": "x"}}, "`seed` must be a number"),
        ({"text_input": "w1", "parameters": {"seed": 2**64}}, "`seed` must be a number"),
        ({"text_input": "w1", "parameters": []}, "`parameters` must be an object"),
        ({"text_input": "w1", "parameters": {"max_new_tokens": 0}}, "`max_new_tokens` must be 1 or more"),
        ({"text_input": ""}, "a prompt must have from 1 to 127 tokens"),
    ],
)
def test_what_cannot_be_generated_is_refused(
    serve: Callable[..., TestClient], body: Mapping[str, Any], said: str
) -> None:
    answer = serve().post(GENERATE, json=body)
    assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text


def test_an_option_of_lists_in_lists_is_refused() -> None:
    with pytest.raises(InputError, match="`seed` must be a number"):
        parse(b'{"text_input": "w1", "seed": ' + b"[" * 1000 + b"]" * 1000 + b"}")


def test_a_model_without_a_tokenizer_takes_ids_alone(serve: Callable[..., TestClient]) -> None:
    client = serve("mute")
    assert len(tokens(client.post(INFER, json=ids(1, max_new_tokens=4)))) == 4
    for route in (GENERATE, STREAM):
        answer = client.post(route, json={"text_input": "w1"})
        assert (answer.status_code, "tokenizer.json" in answer.json()["error"]) == (400, True)


def events(answer: Any) -> list[dict[str, Any]]:
    """The documents of a stream of server-sent events."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    return [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n")[:-1]]


@pytest.mark.parametrize("draft", [None, "small"])
def test_a_stream_gives_the_same_text_word_by_word(
    serve: Callable[..., TestClient], packages: Mapping[str, Path], expected: list[int], draft: str | None
) -> None:
    tiers = {"small": str(packages["draft"])} if draft else {}
    decoding = {"draft": draft, "draft_length": 3, "automatic": False} if draft else {}
    client = serve(tiers=tiers, decoding=decoding)
    asked = {"text_input": "w1 w5 w9", "parameters": {"max_new_tokens": 8, "stream": True}}
    found = events(client.post(STREAM, json=asked))
    words = [WORDS[token] for token in expected[:8]]
    assert [event["text_output"].strip() for event in found] == words
    whole = client.post(GENERATE, json={"text_input": "w1 w5 w9", "max_tokens": 8}).json()["text_output"]
    assert "".join(event["text_output"] for event in found) == whole
    assert {(event["model_name"], event["model_version"]) for event in found} == {
        ("words", found[0]["model_version"])
    }
    assert 'route="generate_stream",status="200"' in client.get("/metrics").text


def say_by_turns(first: int, second: int, folder: Path) -> None:
    """Change a checkpoint so that each of two tokens follows the other."""
    network = language_model.loaded(folder)
    see_the_last_token_alone(network)
    with torch.no_grad():
        for place, (one, other) in enumerate(((first, second), (second, first))):
            network.model.embed_tokens.weight[one] = torch.eye(16)[place]
            network.lm_head.weight[other] = torch.eye(16)[place]
    network.save_pretrained(folder)


def by_bytes() -> Any:
    """A tokenizer whose tokens are bytes."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
    parts = [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    tokenizer.decoder = tokenizers.decoders.Sequence(parts)
    return tokenizer


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_pieces_are_the_text(text: str) -> None:
    tokenizer = by_bytes()
    assert spelled(tokenizer, [], tokenizer.encode(text).ids) == text


def with_spaces() -> Any:
    """One of Llama's kind: a space is a part of the word behind it, and that of the first is dropped."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {
        "\u2581the": 256,
        "\u2581x": 257,
        "x": 258,
    }
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
    parts = tokenizers.decoders
    tokenizer.decoder = parts.Sequence(
        [parts.Replace("\u2581", " "), parts.ByteFallback(), parts.Fuse(), parts.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


WHOLE_LETTERS = [
    [256],
    [257],
    [258],
    [259],
    [0x0A],
    [0xC3, 0xA9],
    list("\u20ac".encode()),
    list("\ufffd".encode()),
]


@given(*[st.lists(st.sampled_from(WHOLE_LETTERS), min_size=1, max_size=6)] * 2)
def test_what_follows_a_prompt_is_what_the_whole_has_behind_it(
    before: list[list[int]], behind: list[list[int]]
) -> None:
    tokenizer, prompt, new = with_spaces(), [*chain(*before)], [*chain(*behind)]
    text = tokenizer.decode(prompt)
    assert text + spelled(tokenizer, prompt, new) == tokenizer.decode(prompt + new)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([257, 0x0A, 0xE2, 257], " x\n\ufffd x"),  # the decoder spoils the line break, which was told by then
        ([0xC3, 0xA9, 0xE2, 0x82, 258], "\u00e9\ufffd\ufffdx"),
        ([0x0A, 0xE2], "\n\ufffd"),
        ([0x0A, 0xE2, 0x82, 0xAC], "\n\u20ac"),
    ],
)
def test_bytes_that_are_no_letter_end_no_text(tokens: list[int], said: str) -> None:
    assert spelled(with_spaces(), [256], tokens) == said


def test_a_prompt_is_neither_filled_up_nor_cut_off_as_its_tokenizer_was_saved_to(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    saved = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    saved.enable_padding(length=8)
    saved.enable_truncation(2)
    saved.save(str(source / "tokenizer.json"))
    language_model.pack(source, "words", tmp_path / "words")
    model = language_model.LanguageModel(Release("words", "1", tmp_path / "words"), Decoding())
    assert asyncio.run(encoded(model.tokenizer, "w1 w5 w9")) == [1, 5, 9]
    model.close()


def test_tokens_of_a_long_text_are_made_in_a_thread() -> None:
    tokenizer, threads = by_bytes(), set[int]()

    class Watched:
        """The tokenizer, which notes the threads of those that ask."""

        def encode(self, text: str) -> Any:
            threads.add(threading.get_ident())
            return tokenizer.encode(text)

        def encode_batch_fast(self, texts: list[str]) -> Any:
            threads.add(threading.get_ident())
            return tokenizer.encode_batch_fast(texts)

    for text, elsewhere in (("a" * 100, False), ("a" * 100_000, True)):
        threads.clear()
        assert asyncio.run(encoded(cast(Any, Watched()), text)) == tokenizer.encode(text).ids
        assert (threads != {threading.get_ident()}) == elsewhere


def test_a_letter_of_several_tokens_comes_whole(tmp_path: Path) -> None:
    """The network repeats the two bytes of `é`: neither is a letter alone."""
    source = checkpoint(tmp_path / "source", tokens=False, vocabulary=256)
    by_bytes().save(str(source / "tokenizer.json"))
    first, second = "é".encode()
    say_by_turns(first, second, source)
    language_model.pack(source, "bytes", tmp_path / "bytes")
    metrics = Metrics()
    slot = Slot(FolderSource(tmp_path / "bytes"), None, metrics)
    with TestClient(App([slot], Settings(poll_s=None), metrics).asgi()) as client:
        asked = {"text_input": "é", "parameters": {"max_new_tokens": 5}}
        streamed = client.post("/v2/models/bytes/generate_stream", json=asked)
        found = [event["text_output"] for event in events(streamed)]
        whole = client.post("/v2/models/bytes/generate", json=asked).json()["text_output"]
    assert (found, "".join(found)) == (["é", "é", "\ufffd"], whole)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text_input": "w1", "parameters": {"stream": False}}, "`stream` must be true"),
        ({"text_input": ""}, "a prompt must have from 1 to 127 tokens"),
    ],
)
def test_what_is_refused_before_the_first_word_has_its_status(
    serve: Callable[..., TestClient], body: Mapping[str, Any], said: str
) -> None:
    answer = serve().post(STREAM, json=body)
    assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize(("own", "status"), [({}, 503), ({"timeout": 60_000_000}, 408)])
def test_a_stream_that_breaks_off_says_so(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch, own: dict[str, int], status: int
) -> None:
    """The deadline passes after the third token: two words at least were told by then. It is counted so."""
    client, told = serve(), itertools.count()
    real = generation._Watch.check

    def late(watch: Any, meanwhile: str) -> None:
        if meanwhile == "decoding" and next(told) >= 3:
            watch._limit = 0.0
        real(watch, meanwhile)

    monkeypatch.setattr(generation._Watch, "check", late)
    asked = {"text_input": "w1 w5", "parameters": {"max_tokens": 9, **own}}
    *words, last = events(client.post(STREAM, json=asked))
    assert len(words) == 3
    assert "it came while decoding" in last["error"]
    assert f'route="generate_stream",status="{status}"}} 1.0' in client.get("/metrics").text


def test_a_stream_that_another_tier_ends_says_so(
    serve: Callable[..., TestClient], packages: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The full model fails at the fourth token, and the tier answers from the first one on: with others."""
    client, told = (
        serve(tiers={"small": str(packages["draft"])}, policies=[{"deadline_routing": {}}]),
        itertools.count(),
    )
    real = generation._Watch.check

    def failing(watch: Any, meanwhile: str) -> None:
        if meanwhile == "decoding" and next(told) == 3:
            raise RuntimeError("it fails")
        real(watch, meanwhile)

    monkeypatch.setattr(generation._Watch, "check", failing)
    *words, last = events(client.post(STREAM, json={"text_input": "w1 w5", "parameters": {"max_tokens": 9}}))
    assert len(words) == 3
    assert "another variant answered than had begun to" in last["error"]
    counted = client.get("/metrics").text
    assert 'route="generate_stream",status="503"} 1.0' in counted
    assert 'route="generate_stream",status="200"}' not in counted


@pytest.mark.parametrize("events", [0, 1])
def test_a_stream_is_closed_when_its_reader_goes(events: int) -> None:
    """After so many events: it counts as one whose reader has gone."""
    closed, ended = list[bool](), list[int]()

    async def others() -> AsyncGenerator[str, None]:
        try:
            yield "w1"
            yield "w2"
        finally:
            closed.append(True)

    async def scenario() -> None:
        pieces, gone = others(), asyncio.Event()
        first = await anext(pieces)
        if not events:
            gone.set()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                gone.set()
                await asyncio.Event().wait()  # nobody takes any more of it

        await Events("words", "1", first, pieces, ended.append)({"type": "http"}, receive, send)
        assert (closed, ended) == ([True], [499])

    asyncio.run(scenario())


def test_it_is_opened_where_an_event_loop_runs(packages: Mapping[str, Path]) -> None:
    """As a replica of Ray Serve opens it."""

    async def scenario() -> None:
        Slot(FolderSource(packages["words"]), None, Metrics()).hosted.close()

    asyncio.run(scenario())


def test_a_stream_that_is_closed_is_not_decoded_for(packages: Mapping[str, Path]) -> None:
    metrics = Metrics()
    slot = Slot(FolderSource(packages["words"]), None, metrics)

    async def scenario() -> float:
        slot.start()
        asked = parse(b'{"text_input": "w1", "max_tokens": 120}', stream=True)
        async with aclosing(slot.hosted.pieces(asked)) as pieces:
            await anext(pieces)
        await slot.hosted.generate(parse(b'{"text_input": "w1", "max_tokens": 1}'))
        return slot.hosted.figures["generation"]()["tokens"]

    assert asyncio.run(scenario()) < 100  # of 121


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 99]}]}, "99"),
        ({"inputs": [{"name": "input_ids", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}, "is FP32"),
        ({"inputs": [{"name": "samples", "datatype": "INT64", "shape": [1, 1], "data": [1]}]}, "is missing"),
        ({"inputs": [{"name": "seed", "datatype": "INT64", "shape": [1], "data": [1]}]}, "is missing"),
        ({**ids(1, min_p=5)}, "there is no `min_p`"),
    ],
)
def test_bad_ids_are_refused(serve: Callable[..., TestClient], request_: Any, said: str) -> None:
    client = serve()
    assert "raw samples" in client.post("/invocations", json={"inputs": [[1]]}).json()["error"]
    answer = client.post(INFER, json=request_)
    assert (answer.status_code, said in answer.json()["error"]) == (400, True), answer.text


def test_an_answer_that_would_be_late_is_given_up(serve: Callable[..., TestClient]) -> None:
    late = serve().post(INFER, json={**ids(1, max_new_tokens=100), "parameters": {"timeout": 1000}})
    assert (late.status_code, "retry-after" in late.headers) == (408, True)


def test_who_waits_in_line_is_told_when_his_deadline_is_over(
    serve: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a text that is decoded all the while; it is answered whole, and whoever comes then is too."""
    client, begun, go_on = serve(), threading.Event(), threading.Event()
    real = generation._Watch.check

    def held(watch: Any, meanwhile: str) -> None:
        begun.set()
        go_on.wait(20)
        real(watch, meanwhile)

    monkeypatch.setattr(generation._Watch, "check", held)
    text = {"text_input": "w1 w5", "parameters": {"max_tokens": 4}}
    hurried = {**text, "parameters": {"max_tokens": 4, "timeout": 50_000}}
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(client.post, GENERATE, json=text)
        assert begun.wait(20)
        late = [
            threads.submit(client.post, GENERATE, json=hurried),
            threads.submit(client.post, STREAM, json=hurried),
            threads.submit(client.post, INFER, json={**ids(1), "parameters": {"timeout": 50_000}}),
        ]
        done, _ = wait(late, timeout=10)
        told = first.done()
        go_on.set()
    assert (len(done), told) == (3, False)
    assert [(one.result().status_code, "retry-after" in one.result().headers) for one in late] == [
        (408, True)
    ] * 3
    assert first.result().status_code == client.post(GENERATE, json=text).status_code == 200


def test_no_more_than_so_many_wait(packages: Mapping[str, Path]) -> None:
    """One is decoded, one waits, the third is told when to come again; then there is room anew."""
    generation = Generation(
        language_model.loaded(packages["words"] / "checkpoint"), Decoding(max_waiting=1, max_new_tokens=20)
    )

    async def scenario() -> None:
        feeds = {"input_ids": np.array([[1]])}
        asked = [asyncio.create_task(generation.answer(feeds)) for _ in range(3)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in found] == [dict, dict, OverloadedError]
        assert generation.figures()["refused"] == 1
        await generation.answer(feeds)

    asyncio.run(scenario())
    generation.close()


@pytest.mark.parametrize(
    ("plan", "error", "said"),
    [
        ({"sessions": 2}, InputError, "decoded in one session"),
        ({"decoding": {"draft": "small"}}, SpecError, "small"),
        ({"tiers": {"small": "images"}}, InputError, "the tier `small` of a language model must be one too"),
    ],
)
def test_a_plan_that_is_not_for_it_is_told(
    packages: Mapping[str, Path],
    packaged: Callable[..., Path],
    plan: Mapping[str, Any],
    error: type[PareflowError],
    said: str,
) -> None:
    with pytest.raises(error) as raised:
        Slot(
            FolderSource(packages["words"]),
            ServingPlan(**plan),
            Metrics(),
            lambda name: FolderSource(packaged(name)),
        )
    assert said in str(raised.value)


def test_decoding_is_for_language_models_alone(packaged: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="`decoding` must be for a causal language model"):
        Slot(FolderSource(packaged("images")), ServingPlan(decoding=Decoding()), Metrics())


def test_what_is_no_language_model_is_not_packed(packages: Mapping[str, Path], tmp_path: Path) -> None:
    source = packages["words"].parent / "words-checkpoint"
    with pytest.raises(InputError, match="must hold a causal language model"):
        language_model.pack(tmp_path, "words", tmp_path / "made")
    with pytest.raises(InputError, match="is there already"):
        language_model.pack(source, "words", packages["words"])
    pickled = shutil.copytree(source, tmp_path / "pickled")
    network = language_model.loaded(source)
    torch.save(network.state_dict(), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(InputError, match="in safetensors"):
        language_model.pack(pickled, "words", tmp_path / "made")


def test_a_damaged_or_different_model_is_refused(packages: Mapping[str, Path], tmp_path: Path) -> None:
    damaged = shutil.copytree(packages["words"], tmp_path / "damaged")
    golden = json.loads((damaged / "golden.json").read_text())
    golden["tokens"][0][0] += 1
    (damaged / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(InputError, match=r"golden\.json in .* changed"):
        Slot(FolderSource(damaged), None, Metrics())
    document = json.loads((damaged / "model.json").read_text())
    (damaged / "model.json").unlink()
    write_manifest(damaged, {key: document[key] for key in document if key != "files"})
    with pytest.raises(PareflowError, match="must repeat its golden tokens"):
        Slot(FolderSource(damaged), None, Metrics())
