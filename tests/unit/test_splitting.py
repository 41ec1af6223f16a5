"""Split inference: where graphs can be cut, that halves answer as the whole, and which cut is taken."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pareflow.compiler import OnnxRuntime
from pareflow.errors import InputError, TransientError
from pareflow.measurement import Interval
from pareflow.network import Form
from pareflow.runtime.placement import ON_DEVICE, ON_SERVER, Halves, Link, choose, placed
from pareflow.runtime.remote import RemoteSession, decode, encode
from pareflow.runtime.splitting import Cut, cuts, split, tensors_of, worth_measuring
from pareflow.serving import halves
from pareflow.serving.halves import Half, session_of
from pareflow.workload import Arrays, LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]


def answer(model: onnx.ModelProto, feeds: Arrays) -> Arrays:
    """What ONNX Runtime computes of a model."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]
    given = {node.name: feeds[node.name] for node in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True))


def in_two(model: onnx.ModelProto, cut: Cut, feeds: Arrays) -> Arrays:
    head, tail = split(model, cut)
    onnx.checker.check_model(head, full_check=True)
    onnx.checker.check_model(tail, full_check=True)
    return answer(tail, {**feeds, **answer(head, feeds)})


Widths = Mapping[str, int]


def made(nodes: list[Any], inputs: Widths, outputs: Widths, **more: Any) -> onnx.ModelProto:
    """A graph over float tensors of shape (batch, width)."""

    def told(values: Mapping[str, int]) -> list[Any]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", w]) for n, w in values.items()]

    graph = helper.make_graph(nodes, "made", told(inputs), told(outputs), **more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def seen_of(model: onnx.ModelProto, width: int = 4) -> list[Arrays]:
    generator = np.random.default_rng(0)
    names = [value.name for value in model.graph.input]
    sizes = (2, 3)
    feeds = [{name: generator.random((size, width), dtype=np.float32) for name in names} for size in sizes]
    return tensors_of(model, feeds)


def named(model: onnx.ModelProto, **options: Any) -> list[tuple[str, tuple[str, ...]]]:
    return [(cut.layer, cut.crossing) for cut in cuts(model, seen_of(model), **options)]


def test_a_chain_is_cut_after_each_of_its_layers_but_the_last() -> None:
    nodes = [
        helper.make_node(op, [a], [b])
        for op, a, b in (("Relu", "x", "a"), ("Exp", "a", "b"), ("Neg", "b", "y"))
    ]
    model = made(nodes, {"x": 4}, {"y": 4})
    assert named(model) == [("Relu a", ("a",)), ("Exp b", ("b",))]


def test_where_a_shortcut_runs_beside_both_cross() -> None:
    """x → a → b, y = a + b: after b both a and b are needed, and one alone separates only after a."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = made(nodes, {"x": 4}, {"y": 4})
    assert named(model) == [("Relu a", ("a",)), ("Exp b", ("a", "b"))]
    assert named(model, most_tensors=1) == [("Relu a", ("a",))]


def test_an_input_that_only_the_tail_takes_crosses_as_it_is() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Mul", ["a", "z"], ["y"])]
    model = made(nodes, {"x": 4, "z": 4}, {"y": 4})
    assert named(model) == [("Relu a", ("z", "a"))]
    (cut,) = cuts(model, seen_of(model))
    head, tail = split(model, cut)
    assert [value.name for value in head.graph.output] == ["a"]
    assert [value.name for value in tail.graph.input] == ["z", "a"]


def test_a_shape_does_not_cross_but_is_computed_again() -> None:
    """It has no row per sample, so that batches of many devices could not be joined."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["y"]),
    ]
    model = made(nodes, {"x": 4}, {"y": 4})
    assert named(model) == [("Relu a", ("a",)), ("Exp b", ("a", "b"))]
    feeds = {"x": np.ones((3, 4), dtype=np.float32)}
    for cut in cuts(model, seen_of(model)):
        assert np.array_equal(in_two(model, cut, feeds)["y"], answer(model, feeds)["y"])


def test_what_is_not_finite_does_not_cross() -> None:
    """A mask of minus infinity could not be told from an answer gone wrong."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Log", ["zero"], ["none"]),
        helper.make_node("Add", ["a", "none"], ["b"]),
        helper.make_node("Exp", ["b"], ["y"]),
    ]
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0])
    model = made(nodes, {"x": 4}, {"y": 4}, initializer=[zero])
    assert named(model) == [("Relu a", ("a",))]


def test_constants_go_to_whoever_needs_them() -> None:
    """`twice` is computed of an initializer alone, and both halves read it."""
    nodes = [
        helper.make_node("Add", ["one", "one"], ["twice"]),
        helper.make_node("Mul", ["x", "twice"], ["a"]),
        helper.make_node("Add", ["a", "twice"], ["y"]),
    ]
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    model = made(nodes, {"x": 4}, {"y": 4}, initializer=[one])
    (cut,) = cuts(model, seen_of(model))
    assert cut.crossing == ("a",)
    feeds = {"x": np.full((2, 4), 3, dtype=np.float32)}
    assert np.array_equal(in_two(model, cut, feeds)["y"], np.full((2, 4), 8, dtype=np.float32))
    assert all([t.name for t in half.graph.initializer] == ["one"] for half in split(model, cut))


def test_a_branch_takes_what_its_subgraph_reads_from_around_it() -> None:
    """The tensor `a` is named in no input of the `If`, and must cross all the same."""
    branches = [
        helper.make_graph(
            [helper.make_node(operator, ["a"], [f"inside_{operator}"])],
            operator,
            [],
            [helper.make_tensor_value_info(f"inside_{operator}", TensorProto.FLOAT, None)],
        )
        for operator in ("Exp", "Neg")
    ]
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "half"], ["asked"]),
        helper.make_node("If", ["asked"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    half = helper.make_tensor("half", TensorProto.FLOAT, [], [0.5])
    model = made(nodes, {"x": 4}, {"y": 4}, initializer=[half])
    found = cuts(model, seen_of(model))
    assert ("x", "a") in [cut.crossing for cut in found]
    for value in (0.2, 0.9):
        feeds = {"x": np.full((2, 4), value, dtype=np.float32)}
        for cut in found:
            assert np.array_equal(in_two(model, cut, feeds)["y"], answer(model, feeds)["y"])


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=9))
def test_any_graph_cut_anywhere_answers_as_the_whole(edges: list[tuple[int, int]]) -> None:
    """Random graphs of sums; every sum that no other reads goes into the output."""
    nodes, names = [], ["x", "z"]
    for number, (left, right) in enumerate(edges):
        pair = [names[left % len(names)], names[right % len(names)]]
        nodes.append(helper.make_node("Add", pair, [f"t{number}"]))
        names.append(f"t{number}")
    read = {name for node in nodes for name in node.input}
    ends = [name for name in names if name not in read]
    nodes.append(helper.make_node("Sum", ends, ["y"]))
    model = made(nodes, {"x": 4, "z": 4}, {"y": 4})
    seen = seen_of(model)
    feeds = {name: seen[0][name] for name in ("x", "z")}
    for cut in cuts(model, seen):
        assert cut.head
        assert cut.tail
        assert np.array_equal(in_two(model, cut, feeds)["y"], seen[0]["y"])


@pytest.mark.parametrize(("name", "layers"), [("images", 3), ("texts", 5), ("encoder", 10)])
def test_every_cut_of_a_network_answers_as_the_whole(
    name: str, layers: int, forms: Forms, load_tiny: Load
) -> None:
    """A convolutional network and two transformers, at a batch size that no one saw."""
    workload = load_tiny(name)
    model = onnx.load_model(forms(name)["onnx"] / "model.onnx")
    found = cuts(model, tensors_of(model, [workload.example(2), workload.example(3)]))
    assert len(found) >= layers
    feeds = workload.example(5)
    expected = answer(model, feeds)
    for cut in found:
        for key, array in in_two(model, cut, feeds).items():
            np.testing.assert_allclose(array, expected[key], rtol=1e-5, atol=1e-5, err_msg=cut.layer)


def test_the_given_model_is_untouched(forms: Forms, load_tiny: Load) -> None:
    model = onnx.load_model(forms("images")["onnx"] / "model.onnx")
    before = model.SerializeToString()
    for cut in cuts(model, tensors_of(model, [load_tiny("images").example(n) for n in (2, 3)])):
        split(model, cut)
    assert model.SerializeToString() == before


def cut_named(layer: str) -> Cut:
    return Cut(layer, frozenset({1}), frozenset({2}), (layer,))


def test_of_many_cuts_those_are_measured_that_send_less_than_all_before() -> None:
    sizes = {cut_named(f"c{i}"): float(size) for i, size in enumerate([90, 120, 80, 80, 30, 50, 10])}
    chosen = [cut.layer for cut in worth_measuring(sizes, input_bytes=85, most=3)]
    assert chosen == ["c2", "c4", "c6"]
    assert [cut.layer for cut in worth_measuring(sizes, 85, most=5)] == ["c0", "c2", "c4", "c5", "c6"]
    assert worth_measuring(sizes, 85, most=7) == list(sizes)


def test_then_those_by_which_the_fewest_tensors_cross() -> None:
    """As between the blocks of a transformer, where inside of them three or four cross."""
    crossing = [3, 1, 3, 3, 1, 3]
    found = [
        Cut(f"c{i}", frozenset({1}), frozenset({2}), tuple("abcd"[:count]))
        for i, count in enumerate(crossing)
    ]
    sizes = dict.fromkeys(found, 100.0)
    assert [cut.layer for cut in worth_measuring(sizes, input_bytes=10, most=2)] == ["c1", "c4"]
    assert [cut.layer for cut in worth_measuring(sizes, 10, most=3)] == ["c0", "c1", "c4"]


def ms(estimate: float, spread: float = 0.0) -> Interval:
    return Interval(estimate, estimate - spread, estimate + spread, samples=100)


def rows(*splits: tuple[float, float, float], whole: float = 10, spread: float = 0.0) -> list[Halves]:
    """Both simple placements (the inputs take 50,000 bytes), then (bytes, device ms, server ms) each."""
    return [
        Halves(ON_DEVICE, (), 0, 0, ms(whole, spread), None),
        Halves(ON_SERVER, ("x",), 50_000, 0, None, ms(whole, spread)),
        *(
            Halves(f"cut {size:g}", ("a",), size, 0, ms(device, spread), ms(server, spread))
            for size, device, server in splits
        ),
    ]


def test_total_is_device_and_transfer_and_server() -> None:
    """20 Mbit/s carry 2,500 bytes a ms: 10,000 bytes take 4 ms, and 10 ms for the way there and back."""
    link = Link(bandwidth_mbit=20, round_trip_ms=10, slower=8)
    found = placed(Halves("cut", ("a",), 9_000, 1_000, ms(2, 0.5), ms(3, 0.25)), link)
    assert found.device == Interval(16, 12, 20, 100)
    assert found.transfer_ms == 14
    assert found.total == Interval(33, 28.75 - 3 + 3, 37.25, 100)
    on_device = placed(rows()[0], link)
    assert (on_device.transfer_ms, on_device.total) == (0, ms(80))


@pytest.mark.parametrize(
    ("bandwidth_mbit", "round_trip_ms", "slower", "expected"),
    [
        (1, 0, 1, ON_DEVICE),  # device 10; inputs alone take 400 ms
        (1e6, 0, 20, ON_SERVER),  # server 10; device 200
        (20, 0, 8, "cut 1000"),  # device 80, server 20 + 10, cut 8 + 0.4 + 9
        (20, 100, 8, ON_DEVICE),  # every round trip is longer than the device takes
    ],
)
def test_the_link_and_the_device_decide(
    bandwidth_mbit: float, round_trip_ms: float, slower: float, expected: str
) -> None:
    link = Link(bandwidth_mbit=bandwidth_mbit, round_trip_ms=round_trip_ms, slower=slower)
    found = [placed(row, link) for row in rows((1000, 1, 9))]
    assert found[choose(found)].halves.layer == expected


def test_a_split_that_is_not_faster_beyond_doubt_is_not_taken() -> None:
    """Law 1 and law 3: 9.5 ± 1 against 10 ± 1 is in doubt, and so is what has no bound."""
    link = Link(bandwidth_mbit=8_000, round_trip_ms=0)
    doubtful = [placed(row, link) for row in rows((1000, 5, 4.5), spread=0.5)]
    assert choose(doubtful) == 0
    sure = [placed(row, link) for row in rows((1000, 5, 4.5))]
    assert choose(sure) == 2
    few = Halves("cut", ("a",), 0, 0, Interval(1, None, None, 3), ms(1))
    assert choose([*(placed(row, link) for row in rows()), placed(few, link)]) == 0


def test_a_cut_with_a_half_that_failed_is_not_taken() -> None:
    failed = Halves("cut", ("a",), 1, 0, None, ms(1), reason="device: CrashedError")
    found = [placed(row, Link(bandwidth_mbit=1e6, round_trip_ms=0)) for row in [*rows(), failed]]
    assert found[2].total is None
    assert choose(found) == 0


positive = st.floats(0.01, 1e4)


@given(st.lists(st.tuples(positive, positive, positive), max_size=6), positive, positive, positive, positive)
def test_the_chosen_is_never_slower_than_all_on_one_side(
    splits: list[tuple[float, float, float]], whole: float, mbit: float, trip: float, slower: float
) -> None:
    link = Link(bandwidth_mbit=mbit, round_trip_ms=trip, slower=slower)
    found = [placed(row, link) for row in rows(*splits, whole=whole, spread=whole / 10)]
    totals = [placement.total.estimate for placement in found if placement.total is not None]
    assert totals[choose(found)] <= min(totals[:2])


def test_messages_hold_arrays_and_nothing_else() -> None:
    arrays: Arrays = {
        "ids": np.arange(6).reshape(2, 3),
        "mask": np.ones((2, 1), dtype=bool),
        "states": np.asarray([[0.1]], dtype=np.float32),
    }
    again = decode(encode(arrays))
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(again[name], array)
    for message in (b"", b"nonsense", encode(arrays)[:-40]):
        with pytest.raises(ValueError, match="no message"):
            decode(message)


def test_a_message_that_would_run_code_or_swell_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", a=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        decode((tmp_path / "objects.npz").read_bytes())
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(10**6))
    with pytest.raises(ValueError, match="compressed"):
        decode((tmp_path / "bomb.npz").read_bytes())


@pytest.fixture(scope="module")
def written(forms: Forms, load_tiny: Load, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """All halves of a tiny network."""
    made: dict[str, Path] = {}

    def write(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"halves-{name}")
            batches = [load_tiny(name).example(size) for size in (2, 3)]
            halves.write_all(forms(name)["onnx"], batches, OnnxRuntime(), 4, made[name])
        return made[name]

    return write


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A process that serves a half; its address."""
    command = [sys.executable, "-m", "pareflow.serving.halves", "server", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@pytest.mark.parametrize("name", ["images", "texts"])
def test_two_processes_over_http_answer_as_the_whole(
    name: str, written: Callable[[str], Path], load_tiny: Load, forms: Forms, tmp_path: Path
) -> None:
    folder, feeds = written(name), load_tiny(name).example(5)
    last = sorted(path for path in folder.iterdir() if path.is_dir())[-1]
    expected = answer(onnx.load_model(forms(name)["onnx"] / "model.onnx"), feeds)
    np.savez(tmp_path / "in.npz", **feeds)  # type: ignore[arg-type]
    with server(last / "server") as url:
        command = [sys.executable, "-m", "pareflow.serving.halves", "device", str(last / "device")]
        files = [str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
        subprocess.run([*command, "--server", url, *files], check=True)
        with closing(session_of(last / "device", url)) as session:
            ran = session.ran()
    with np.load(tmp_path / "out.npz") as answers:
        assert set(answers.files) == set(expected)
        for key in answers.files:
            np.testing.assert_allclose(answers[key], expected[key], rtol=1e-5, atol=1e-5)
    assert ran.runtime == "onnxruntime | onnxruntime"
    assert ran.threads == 1


def test_both_simple_placements_answer_too(
    written: Callable[[str], Path], load_tiny: Load, forms: Forms
) -> None:
    folder, feeds = written("images"), load_tiny("images").example(2)
    expected = answer(onnx.load_model(forms("images")["onnx"] / "model.onnx"), feeds)
    assert np.array_equal(session_of(folder / "00" / "device", None).run(feeds)["output"], expected["output"])
    with (
        server(folder / "01" / "server") as url,
        closing(session_of(folder / "01" / "device", url)) as session,
    ):
        assert np.array_equal(session.run(feeds)["output"], expected["output"])


def test_a_server_says_what_it_does_not_take_and_goes_on(
    written: Callable[[str], Path], load_tiny: Load
) -> None:
    feeds = load_tiny("images").example(2)
    with server(written("images") / "01" / "server") as url:
        session = RemoteSession(url)
        with pytest.raises(InputError, match=r"\['images'\] must be given, but \['pictures'\] are"):
            session.run({"pictures": feeds["images"]})
        with pytest.raises(InputError, match="images"):
            session.run({"images": feeds["images"][:, :, :3]})
        assert session.run(feeds)["output"].shape == (2, 4)
        session.close()


def test_a_server_that_is_gone_is_worth_another_try(written: Callable[[str], Path], load_tiny: Load) -> None:
    with server(written("images") / "01" / "server") as url:
        session = RemoteSession(url)
        session.run(load_tiny("images").example(2))
    with pytest.raises(TransientError, match=f"{url} must answer"):
        session.run(load_tiny("images").example(2))


def test_bad_input_is_told(tmp_path: Path, written: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="must hold a half"):
        session_of(tmp_path, None)
    with pytest.raises(InputError, match="needs its server"):
        session_of(written("images") / "01" / "device", None)
    with pytest.raises(InputError, match="http://HOST:PORT"):
        RemoteSession("ftp://nowhere")
    assert halves.main(["server", str(written("images") / "01" / "device")]) == 2


def test_halves_come_back_from_disk(written: Callable[[str], Path]) -> None:
    folder = written("images") / "01" / "server"
    half = Half.read(folder)
    assert half == Half(OnnxRuntime().step, ("images",), ("images",), True)
    assert json.loads((folder / "half.json").read_text())["takes"] == ["images"]
