"""What a user brings: splits, feeds, and a file that defines it all."""

import hashlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import MissingExtraError, SpecError, SplitError, WorkloadError
from pareflow.onnx_file import OnnxFile
from pareflow.variant import Step
from pareflow.workload import (
    SPLITS,
    LoadedWorkload,
    Split,
    Splits,
    _code_digest,
    _code_of,
    code_files,
    define,
    imported_files,
    load,
)

Load = Callable[[str], LoadedWorkload]
SOURCE = """
import numpy as np
from pareflow.errors import MissingExtraError
from pareflow.workload import Split, Splits, Workload

def split(*values):
    return Split(np.asarray(values, dtype=np.float32), np.zeros(len(values), dtype=np.int64))

class Mine(Workload):
    epochs: int = 3
    def data(self):
        {data}
    def network(self): ...
    def preprocess(self, samples): ...
    def postprocess(self, outputs): ...
"""
FINE = "return Splits(split(1), split(2), split(3), split(4))"


def written(folder: Path, data: str = FINE, source: str = SOURCE) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "workload.py").write_text(source.replace("{data}", data))
    return folder


def file(path: str = "workload.py", **settings: object) -> dict[str, object]:
    return {"file": {"path": path, "settings": settings}}


def numbers(*values: int) -> Split:
    return Split(np.asarray(values), np.zeros(len(values), dtype=np.int64))


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 99))
def test_cut_gives_every_sample_to_one_split(calibration: int, search: int, verdict: int, seed: int) -> None:
    data = numbers(*range(30))
    cut = Splits.cut(data, calibration=calibration, search=search, verdict=verdict, seed=seed)
    sizes = [len(getattr(cut, name)) for name in SPLITS]
    assert sizes == [30 - calibration - search - verdict, calibration, search, verdict]
    everything = [int(x) for name in SPLITS for x in getattr(cut, name).samples]
    assert sorted(everything) == list(range(30))


@pytest.mark.parametrize("verdict", [20, 21])
def test_cut_that_leaves_none_for_training_is_told(verdict: int) -> None:
    said = rf"must leave one sample for training at least, but 5 \+ 5 \+ {verdict} are to be taken of 30"
    with pytest.raises(SplitError, match=said):
        Splits.cut(numbers(*range(30)), calibration=5, search=5, verdict=verdict, seed=0)


def test_cut_depends_on_the_seed_alone() -> None:
    one, same, other = (
        Splits.cut(numbers(*range(30)), calibration=5, search=5, verdict=5, seed=seed).verdict.samples
        for seed in (0, 0, 1)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def kept(values: list[int], seed: int) -> dict[int, str]:
    """The split of each sample, cut by content; fails where equal samples are not in one."""
    cut = Splits.by_content(numbers(*values), calibration=0.1, search=0.2, verdict=0.3, seed=seed)
    found = [(int(x), name) for name in SPLITS for x in getattr(cut, name).samples]
    decide = [x for x, name in found if name == "verdict"]
    others = [x for x in values if x not in decide]
    assert sorted(x for x, name in found if name != "verdict") == sorted(others)
    assert sorted(decide) == sorted(set(values) - set(others))  # equal samples count once
    assert len(set(found)) == len(set(values))
    return dict(found)


@given(st.lists(st.integers(0, 99), min_size=1), st.lists(st.integers(0, 99)), st.integers(0, 9))
def test_what_joins_moves_no_sample_that_was_cut_by_content(
    before: list[int], joining: list[int], seed: int
) -> None:
    once, later = kept(before, seed), kept([*joining, *before], seed)
    assert {x: later[x] for x in once} == once


def test_cut_by_content_mixes_sorted_data_and_is_the_same_in_any_order() -> None:
    """Of 1,000 samples of each of two classes, one after the other, 20 are 1 in 2¹⁹ to be of one class."""
    values = np.arange(2000)
    ordered, shuffled = (
        Splits.by_content(Split(v, v // 1000), calibration=0.2, search=0.2, verdict=0.2, seed=3)
        for v in (values, np.random.default_rng(0).permutation(values))
    )
    for name in SPLITS:
        part = getattr(ordered, name)
        assert set(part.targets[:20]) == {0, 1}
        assert np.array_equal(part.samples, getattr(shuffled, name).samples)


def test_cut_by_content_gives_about_the_shares_that_were_asked_for() -> None:
    """Of 10,000 samples, shares of 0.4, 0.1, 0.2 and 0.3: within five standard deviations, 50 at most."""
    cut = Splits.by_content(numbers(*range(10_000)), calibration=0.1, search=0.2, verdict=0.3, seed=7)
    sizes = [len(getattr(cut, name)) for name in SPLITS]
    assert sizes == pytest.approx([4000, 1000, 2000, 3000], abs=250)
    assert kept(list(range(50)), 7) != kept(list(range(50)), 8)


@pytest.mark.parametrize(("samples", "targets"), [(1000, 900), (900, 1000)])
def test_samples_without_a_target_each_are_not_cut(samples: int, targets: int) -> None:
    data = Split(np.arange(samples), np.zeros(targets, dtype=np.int64))
    with pytest.raises(SplitError, match=f"has {samples} samples and {targets} targets"):
        Splits.cut(data, calibration=100, search=200, verdict=300, seed=0)
    with pytest.raises(SplitError, match=f"has {samples} samples and {targets} targets"):
        Splits.by_content(data, calibration=0.1, search=0.2, verdict=0.3, seed=0)


@pytest.mark.parametrize("samples", [np.asarray([5, 6, 7]), ["five", "six", "seven"]], ids=["array", "texts"])
def test_taken_samples_keep_their_targets(samples: np.ndarray | list[str]) -> None:
    taken = Split(samples, np.asarray([0, 1, 2])).take(np.asarray([2, 0]))
    assert list(taken.samples) == [samples[2], samples[0]]
    assert taken.labels().tolist() == [2, 0]


@pytest.mark.parametrize("column", ["text", "number"])
def test_columns_of_a_shuffled_table_are_taken_by_position(column: str) -> None:
    """By their labels, a row would get the target of another."""
    table = pandas.DataFrame({"text": list("abcd"), "number": range(4), "label": list("ABCD")})
    shuffled = table.iloc[[2, 0, 3, 1]]
    taken = Split(shuffled[column], shuffled["label"]).take(np.asarray([0, 3]))
    assert list(taken.samples) == table[column].iloc[[2, 1]].tolist()
    assert taken.labels().tolist() == ["C", "B"]
    assert isinstance(taken.samples, list if column == "text" else np.ndarray)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (Splits(numbers(), numbers(2), numbers(3), numbers(4)), "`train` has 0 samples and 0 targets"),
        (
            Splits(numbers(1), numbers(2), Split(np.asarray([3, 5]), np.zeros(1)), numbers(4)),
            "`search` has 2 samples and 1 targets",
        ),
        (
            Splits(numbers(1, 9), numbers(2), numbers(3), numbers(9, 1, 4)),
            "2 samples of `verdict` are also in `train`",
        ),
    ],
    ids=["empty", "unequal", "overlapping"],
)
def test_split_that_cannot_be_used_is_named(splits: Splits, said: str) -> None:
    with pytest.raises(SplitError, match=said):
        splits.check()


@pytest.mark.parametrize(
    ("sample", "target"),
    [(9, np.zeros((2, 1500))), (1, np.eye(2, 1500, 700))],
    ids=["sample", "one number of a large target"],
)
def test_data_digest_changes_with_any_number(sample: int, target: np.ndarray) -> None:
    def checked(first: int, targets: np.ndarray) -> str:
        return Splits(
            numbers(100), numbers(200), numbers(300), Split(np.asarray([first, 2]), targets)
        ).check()

    assert checked(sample, target) != checked(1, np.zeros((2, 1500)))
    assert checked(sample, target) == checked(sample, target.copy())


def rows(*values: object) -> Split:
    """A row of a text and two numbers, as `DataFrame.to_numpy()` gives it, for each value."""
    table = [[f"city {value}", 0.5, 1000] for value in values]
    return Split(np.array(table, dtype=object), np.zeros(len(values), dtype=np.int64))


def test_equal_rows_of_objects_are_equal_samples() -> None:
    with pytest.raises(SplitError, match="1 samples of `calibration` are also in `train`"):
        Splits(rows(1, 2), rows(3, 2), rows(4), rows(5)).check()


def test_rows_of_objects_name_the_data_by_their_content() -> None:
    once, again, other = (Splits(rows(1), rows(2), rows(3), rows(last)).check() for last in (4, 4, 5))
    assert once == again != other


def test_rows_of_objects_are_cut_alike_in_every_process() -> None:
    code = (
        "import numpy as np; from pareflow.workload import Split\n"
        "print(Split(np.array([['a' + str(i), i + 0.5] for i in range(3)], dtype=object)).sample_digests())"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    ]
    assert said[0] == said[1]


def test_targets_of_objects_name_the_data_by_their_content() -> None:
    def checked(number: int) -> str:
        targets = np.array([("a" * number, None)], dtype="O,O")
        return Splits(*(replace(numbers(i), targets=targets) for i in range(4))).check()

    assert checked(3) == checked(3) != checked(4)


def test_digests_of_what_holds_no_objects_are_of_its_bytes() -> None:
    """As they always were: the ids of what is stored stay."""
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert Split(array).sample_digests() == [hashlib.sha256(row.tobytes()).hexdigest() for row in array]
    texts = np.asarray(["a", "bc"], dtype=object)
    assert Split(texts).sample_digests() == [hashlib.sha256(t).hexdigest() for t in (b"a", b"bc")]


def test_object_that_tells_its_address_is_refused_with_a_way_out() -> None:
    samples = np.array([["a", object()]], dtype=object)
    with pytest.raises(
        WorkloadError, match=r"dtype object .* one of type `object`.*Make it a text"
    ) as caught:
        Split(samples).sample_digests()
    assert caught.value.exit_code == 2


def test_feeds_are_preprocessed_batches_in_order(load_tiny: Load) -> None:
    workload = load_tiny("texts")
    batches = list(workload.feeds("search", 8, limit=20))
    assert [len(batch["ids"]) for batch in batches] == [8, 8, 4]
    expected = workload.definition.preprocess(workload.split("search").samples[:20])
    assert np.array_equal(np.concatenate([batch["ids"] for batch in batches]), expected["ids"])
    assert sum(len(batch["ids"]) for batch in workload.feeds("search", 64)) == 100


def test_example_repeats_calibration_samples_where_they_are_few(load_tiny: Load) -> None:
    images = load_tiny("images").example(50)["images"]
    assert images.shape == (50, 1, 8, 8)
    assert np.array_equal(images[:10], images[40:])


def test_workload_knows_its_folder_and_says_every_setting(workloads: Path) -> None:
    workload = define(file("images.py", steps=7), workloads)
    assert workload.folder == workloads
    assert workload.step == Step("file", {"path": "images.py", "settings": {"seed": 0, "steps": 7}})
    assert define(workload.step.to_json(), workloads).step == workload.step


def test_settings_and_data_name_the_workload(tmp_path: Path) -> None:
    folder = written(tmp_path / "w")
    plain = load(file(), folder)
    assert load(file(epochs=3), folder).digest == plain.digest
    assert load(file(epochs=4), folder).digest != plain.digest
    other = load(file(), written(tmp_path / "v", FINE.replace("4", "5")))
    assert other.data_digest != plain.data_digest


def test_code_beside_the_workload_names_it_too(tmp_path: Path) -> None:
    folder = written(tmp_path / "w")
    before = load(file(), folder).digest
    (folder / "layers.py").write_text("WIDTH = 3\n")
    assert load(file(), folder).digest != before


def test_own_code_from_elsewhere_names_the_workload_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an editable install has it: imported within a function, and what that module imports in turn."""
    for name, code in {
        "nets": "from .blocks.norm import SIZE",
        "blocks/norm": "SIZE = 3",
        "unused": "",
    }.items():
        (tmp_path / "company" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "company" / f"{name}.py").write_text(code + "\n")
    (tmp_path / "company" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    source = SOURCE.replace(
        "def network(self): ...", "def network(self):\n        from company.nets import Net"
    )
    folder = written(tmp_path / "w", source=source)
    assert set(imported_files(code_files(folder).values())) == {
        "company",
        "company.nets",
        "company.blocks.norm",
    }
    before = load(file(), folder).digest
    (tmp_path / "company" / "unused.py").write_text("# more\n")
    assert load(file(), folder).digest == before
    (tmp_path / "company" / "blocks" / "norm.py").write_text("SIZE = 4\n")
    assert load(file(), folder).digest != before


def with_package(folder: Path, code: str = "WIDTH = 3\n") -> Path:
    """A workload that imports `models/nets/net.py`."""
    source = SOURCE.replace("class Mine", "from .models.nets.net import WIDTH\n\nclass Mine")
    written(folder, source=source)
    (folder / "models" / "nets").mkdir(parents=True)
    (folder / "models" / "__init__.py").touch()
    (folder / "models" / "nets" / "net.py").write_text(code)
    return folder


def test_code_below_the_workload_names_it_too(tmp_path: Path) -> None:
    first, same = (load(file(), with_package(tmp_path / name)) for name in "ab")
    other = load(file(), with_package(tmp_path / "c", "WIDTH = 40\n"))
    assert first.digest == same.digest != other.digest
    modules = [sys.modules[type(w.definition).__module__] for w in (first, other)]
    assert [module.WIDTH for module in modules] == [3, 40]


def test_bytecode_without_its_source_is_not_run(tmp_path: Path) -> None:
    """No digest covers it: the workload would be the same whatever it does."""
    folder = with_package(tmp_path / "w")
    source = folder / "models" / "nets" / "net.py"
    py_compile.compile(str(source), str(source.with_suffix(".pyc")), doraise=True)
    source.unlink()
    with pytest.raises(WorkloadError, match=r"ImportError: .*net\.py must be there, but only its byte"):
        load(file(), folder)


def test_code_is_what_can_be_imported_and_no_environment_beside_it(tmp_path: Path) -> None:
    folder = with_package(tmp_path / "w")
    for path in (
        ".hidden/a.py",
        ".hidden.py",
        "__pycache__/a.py",
        "my-notes/a.py",
        "venv/a.py",
        "venv/lib/a.py",
        "data/part/a.py",
        "models/text.txt",
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    (folder / "venv" / "pyvenv.cfg").touch()
    (folder / "models" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "linked").symlink_to(folder / "models" / "nets", target_is_directory=True)
    assert list(code_files(folder)) == [
        "workload.py",
        "linked/net.py",
        "models/__init__.py",
        "models/nets/net.py",
    ]


def test_onnx_workload_is_named_by_its_own_code_and_not_all_of_pareflow() -> None:
    """What it imports of pareflow, and what that imports, but for what every workload is told by."""
    common = {"errors", "ports", "variant", "workload"}
    named = {module.__name__.rpartition(".")[2] for module in OnnxFile.made_of}
    for module in (sys.modules[OnnxFile.__module__], *OnnxFile.made_of):
        imports = re.findall(
            r"^from pareflow(?:\.(\w+))? import (.+)$", Path(str(module.__file__)).read_text(), re.M
        )
        for within, names in imports:
            assert {within} <= common if within else {*names.split(", ")} <= named
    assert named == {"graph_file", "graph_surgery", "ports"}
    assert set(_code_of(OnnxFile)) == {"onnx_file.py", *(f"{name}.py" for name in named)}


def test_workload_of_ones_own_is_named_by_its_own_folder_whatever_it_derives_from(tmp_path: Path) -> None:
    source = "from pareflow.onnx_file import OnnxFile\n\nclass Mine(OnnxFile): ...\n"
    folder = written(tmp_path / "w", source=source)
    definition = define(file(model="a.onnx", arrays="a.npz"), folder)
    before = _code_digest(definition)
    assert set(_code_of(type(definition))) == {"workload.py"}
    (folder / "more.py").touch()
    assert _code_digest(definition) != before


def test_two_workloads_of_one_folder_are_two(tmp_path: Path) -> None:
    folder = written(tmp_path / "w")
    shutil.copyfile(folder / "workload.py", folder / "second.py")
    assert load(file(), folder).digest != load(file("second.py"), folder).digest


def test_data_are_loaded_in_the_workloads_own_words(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="moon"):
        load(file(), written(tmp_path / "w", "raise MissingExtraError('moon', 'none', 'fly')"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1", "must define one subclass of pareflow.workload.Workload, but it defines 0"),
        (SOURCE + "\nclass Other(Mine): ...", "but it defines 2"),
        ("import moon", "must be importable, but it raised ModuleNotFoundError: No module named 'moon'"),
        ("class Mine(:", "must be importable, but it raised SyntaxError"),
        (SOURCE.replace("def network", "def netwrok"), "it lacks network"),
    ],
    ids=["none", "two", "import", "syntax", "abstract"],
)
def test_file_that_defines_no_workload_says_why(tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        load(file(), written(tmp_path / "w", source=source))
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("raise KeyError('label')", "it raised KeyError: 'label'"),
        ("return None", "AttributeError"),
        ("return Splits(split(1), split(1), split(3), split(4))", "also in `train`"),
    ],
    ids=["raises", "gives nothing", "overlaps"],
)
def test_data_that_cannot_be_used_is_the_workloads_fault(tmp_path: Path, data: str, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        load(file(), written(tmp_path / "w", data))


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"epohcs": 4}, "unknown key 'epohcs'; did you mean 'epochs'?"), ({"epochs": "many"}, "epochs: ")],
    ids=["key", "type"],
)
def test_wrong_settings_are_told(tmp_path: Path, settings: dict[str, object], said: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        define({"file": {"path": "workload.py", "settings": settings}}, written(tmp_path / "w"))
    assert said in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"must exist, but there is no .*absent\.py"):
        define(file("absent.py"), tmp_path)


def test_unknown_kind_of_workload_is_told(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown workload 'hugingface'"):
        define({"hugingface": {}}, tmp_path)
