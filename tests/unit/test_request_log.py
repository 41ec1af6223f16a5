"""Kept requests: redacted, bounded in memory and on disk, whole or absent, never in an answer's way."""

import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareflow.errors import SpecError
from pareflow.serving import request_log
from pareflow.serving.request_log import (
    Names,
    RequestLog,
    RequestLogSettings,
    exchanges,
    expire,
    files,
    place,
    retain,
)

IMAGE = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
NAMES = Names(("image", "name", "card"), ("image", "name", "card", "output"))


def log_of(folder: Path, **settings: Any) -> RequestLog:
    return RequestLog(RequestLogSettings(share=1, flush_s=0.05, **settings), folder)


def everything(folder: Path) -> list[request_log.Exchange]:
    return [one for path in files(folder) for one in exchanges(path)]


def test_what_is_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    """Numbers and texts, of different shapes in one file, under the request's id."""
    log = log_of(tmp_path)
    log.take(
        "a", "m", "3", {"image": IMAGE}, {"output": np.ones((1, 2)), "predictions": np.array([7])}, 100, NAMES
    )
    log.take(
        "b",
        "m",
        "3",
        {"samples": np.array(["é", "zwei"], dtype=object)},
        {"predictions": ["x", "y"]},
        100,
        NAMES,
    )
    log.close()
    first, second = everything(tmp_path)
    assert (first.id, first.model, first.version, second.id) == ("a", "m", "3", "b")
    assert np.array_equal(first.inputs["image"], IMAGE)
    assert first.inputs["image"].dtype == np.float32
    assert first.outputs.keys() == {"output", "predictions"}
    assert second.inputs["samples"].tolist() == ["é", "zwei"]
    assert second.outputs["predictions"].tolist() == ["x", "y"]
    assert log.figures()["kept"] == 2


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    log = log_of(folder)
    log.take("a", "m", "1", {"image": IMAGE}, {}, 100, NAMES)
    log.close()
    (path,) = files(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_is_left_out_or_digested_is_nowhere_in_the_file(tmp_path: Path) -> None:
    log = log_of(tmp_path, left_out=("name",), digest_only=("card",))
    for identity in ("a", "b"):
        log.take(
            identity, "m", "1", {"name": ["SECRETNAME"], "card": ["4242"], "image": IMAGE}, {}, 100, NAMES
        )
    log.close()
    (path,) = files(tmp_path)
    content = path.read_bytes()
    for secret in ("SECRETNAME", "4242"):
        assert secret.encode() not in content
        assert secret.encode("utf-32-le") not in content
    first, second = everything(tmp_path)
    assert first.inputs.keys() == {"image"}
    assert first.digests == second.digests != {}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"left_out": ("name",)}, set()),
        ({"digest_only": ("name",)}, set()),
        ({"digest_only": ("name", "samples")}, {"digest"}),
        ({"left_out": ("output",)}, {"samples"}),
    ],
)
def test_raw_samples_are_left_out_where_an_input_is(
    tmp_path: Path, settings: dict[str, Any], kept: set[str]
) -> None:
    """They hold it: unless they are named themselves. What an output hides is not in them."""
    log = log_of(tmp_path, **settings)
    log.take("a", "m", "1", {"samples": ["Ada"]}, {"output": [1], "predictions": [1]}, 100, NAMES)
    log.close()
    (found,) = everything(tmp_path)
    assert found.inputs.keys() | {"digest" for _ in found.digests} == kept


def test_what_hides_no_tensor_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A typing error, or a version that calls it otherwise: said once."""
    log = log_of(tmp_path, left_out=("nmae",))
    for identity in "ab":
        log.take(identity, "m", "1", {"name": ["Ada"]}, {}, 100, NAMES)
    log.close()
    assert (files(tmp_path), log.figures()["unkeepable"]) == ([], 2)
    assert [record.message.count("got `nmae`") for record in caplog.records] == [1]


def test_a_digest_cannot_be_made_again_elsewhere(tmp_path: Path) -> None:
    """Its key dies with the server: equal inputs of two servers have different ones."""
    found = set()
    for number in range(2):
        log = log_of(tmp_path / str(number), digest_only=("card",))
        log.take("a", "m", "1", {"card": ["4242"]}, {}, 100, NAMES)
        log.close()
        found.add(everything(tmp_path / str(number))[0].digests["card"])
    assert len(found) == 2


def test_what_finds_no_room_is_dropped_and_counted(tmp_path: Path) -> None:
    """The line holds one image of 4 MB and a half: of three that come at once two are dropped."""
    log = RequestLog(RequestLogSettings(share=1, flush_s=5, queue_mib=6), tmp_path)
    for identity in "abc":
        log.take(identity, "m", "1", {"image": np.zeros(2**20, np.float32)}, {}, 2**22, NAMES)
    assert log.figures()["dropped"] == 2
    log.close()
    assert log.figures()["waiting_bytes"] == 0
    assert [one.id for one in everything(tmp_path)] == ["a"]


def test_records_are_kept_in_an_array_with_a_field_for_each_value(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    log.take(
        "a", "m", "1", {"samples": [{"age": 3, "name": "Ada"}, {"name": "é", "age": 4.5}]}, {}, 100, NAMES
    )
    log.close()
    (found,) = everything(tmp_path)
    samples = found.inputs["samples"]
    assert samples.dtype.names == ("age", "name")
    assert samples.tolist() == [(3.0, "Ada"), (4.5, "é")]


def test_what_is_missing_among_numbers_is_kept_as_nan(tmp_path: Path) -> None:
    """In lists and in records: else what is watched would be requests that lack nothing."""
    log = log_of(tmp_path)
    log.take("a", "m", "1", {"samples": [[1, None], [2.5, 3]]}, {}, 100, NAMES)
    log.take("b", "m", "1", {"samples": [{"age": None}, {"age": 3}]}, {}, 100, NAMES)
    log.close()
    lists, records = (one.inputs["samples"] for one in everything(tmp_path))
    assert np.array_equal(lists, [[1, np.nan], [2.5, 3]], equal_nan=True)
    assert np.array_equal(records["age"], [np.nan, 3], equal_nan=True)


def test_what_no_array_holds_is_counted_and_told_once_where_nothing_else_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd: list[Any] = [[[1, 2], [3]], [{"age": 3}, {"size": 3}], np.array([[1], None], dtype=object)]
    for others in (0, 1):
        log = log_of(tmp_path / str(others))
        for number in range(others):
            log.take(str(number), "m", "1", {"image": IMAGE}, {}, 100, NAMES)
        for samples in odd:
            log.take("odd", "m", "1", {"samples": samples}, {}, 100, NAMES)
        log.close()
        assert (log.figures()["unkeepable"], log.figures()["kept"]) == (len(odd), others)
        assert len(everything(tmp_path / str(others))) == others
        told = [record.message for record in caplog.records]
        assert [words.startswith("no request is kept so far") for words in told] == [True]


def test_texts_that_take_too_much_room_beside_the_longest_are_not_kept(tmp_path: Path) -> None:
    """4 KB came, and would be an array of 4 MB."""
    log = log_of(tmp_path, queue_mib=1)
    texts = ["b" * 1000, *"a" * 1000]
    log.take("a", "m", "1", {"samples": texts}, {}, 4000, NAMES)
    log.take("b", "m", "1", {"samples": np.array(texts, dtype=object)}, {}, 4000, NAMES)
    log.take("c", "m", "1", {"samples": texts[:3]}, {}, 4000, NAMES)
    log.close()
    assert (log.figures()["unkeepable"], log.figures()["waiting_bytes"]) == (2, 0)
    assert [one.id for one in everything(tmp_path)] == ["c"]


def test_numbers_are_not_measured_as_texts_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come as lists of JSON: it would take a look at each."""
    monkeypatch.setattr(request_log, "padded_bytes", None)
    log = log_of(tmp_path)
    log.take("a", "m", "1", {"samples": [[1, 2], [3, 4]]}, {}, 100, NAMES)
    log.close()
    assert [one.inputs["samples"].tolist() for one in everything(tmp_path)] == [[[1, 2], [3, 4]]]


def test_requests_that_grow_are_written_before_they_are_too_much_together(tmp_path: Path) -> None:
    """Half of what may wait each, once their texts are padded: two fill a file."""
    log = RequestLog(RequestLogSettings(share=1, flush_s=5, queue_mib=1), tmp_path)
    for identity in "abcd":
        log.take(identity, "m", "1", {"samples": ["b" * 1000, *"a" * 140]}, {}, 1200, NAMES)
    log.close()
    assert [len(list(exchanges(path))) for path in files(tmp_path)] == [2, 2]


@pytest.mark.parametrize(("error", "counted"), [(MemoryError, "unkeepable"), (RuntimeError, "failed")])
def test_the_log_outlives_what_one_request_does_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception], counted: str
) -> None:
    real = request_log._plain

    def plain(tensor: Any, most: float) -> np.ndarray:
        if tensor is IMAGE:
            raise error
        return real(tensor, most)

    monkeypatch.setattr(request_log, "_plain", plain)
    log = log_of(tmp_path)
    log.take("a", "m", "1", {"image": IMAGE}, {}, 100, NAMES)
    log.take("b", "m", "1", {"image": IMAGE.copy()}, {}, 100, NAMES)
    log.close()
    assert (log.figures()[counted], log.figures()["waiting_bytes"]) == (1, 0)
    assert [one.id for one in everything(tmp_path)] == ["b"]


def test_a_disk_that_refuses_costs_the_file_and_nothing_else(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log")
    (tmp_path / "log").rmdir()
    (tmp_path / "log").write_text("no folder any more")
    log.take("a", "m", "1", {"image": IMAGE}, {}, 100, NAMES)
    log.close()
    assert (log.figures()["failed"], log.figures()["waiting_bytes"]) == (1, 0)


def test_what_another_server_removes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whole and one half written: there when they are listed, gone when they are looked at."""
    there = place(tmp_path, "0000000000001-1-1.npz")
    there.parent.mkdir()
    there.write_bytes(bytes(1024))
    os.utime(there, (0, 0))
    gone = place(tmp_path, "0000000000002-1-1.npz")
    partial = gone.with_name(f".{gone.name}")
    monkeypatch.setattr(request_log, "files", lambda folder: [there, gone])
    real = Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda path, pattern: [partial] if "*/." in pattern else real(path, pattern)
    )
    assert retain(tmp_path, keep_days=7, keep_mib=1) == 1


def test_requests_are_kept_though_old_ones_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> int:
        raise PermissionError("not yours")

    monkeypatch.setattr(request_log, "retain", refused)
    monkeypatch.setattr(request_log, "_SWEEP_S", 0.0)
    log = log_of(tmp_path)
    for number in range(2):
        log.take(str(number), "m", "1", {"image": IMAGE}, {}, 100, NAMES)
        for _ in range(200):
            if log.figures()["kept"] > number:
                break
            time.sleep(0.02)
    log.close()
    assert log.figures()["kept"] == 2


def test_retention_removes_the_old_and_then_the_oldest(tmp_path: Path) -> None:
    """Five files of 1 KiB, the first of them nine days old: of the others as many stay as fit."""
    names = [f"{number}00000000000{number}-1-1.npz" for number in range(5)]
    for name in names:
        place(tmp_path, name).parent.mkdir()
        place(tmp_path, name).write_bytes(bytes(1024))
    os.utime(place(tmp_path, names[0]), (0, time.time() - 9 * 86_400))
    assert retain(tmp_path, keep_days=7, keep_mib=1) == 1
    assert retain(tmp_path, keep_days=7, keep_mib=2.5 / 1024) == 2
    assert [path.name for path in files(tmp_path)] == names[3:]
    assert [path.name for path in files(tmp_path, after=names[3])] == names[4:]
    assert len(list(tmp_path.iterdir())) == 2  # folders go with their files


def test_what_a_server_kept_goes_though_none_keeps_any_more(tmp_path: Path) -> None:
    """After as many days as it said; what no server kept is nobody's to remove."""
    log = log_of(tmp_path / "ours", keep_days=2)
    log.take("a", "m", "1", {"image": IMAGE}, {}, 100, NAMES)
    log.close()
    (ours,) = files(tmp_path / "ours")
    theirs = place(tmp_path / "theirs", ours.name)
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    assert expire(tmp_path / "ours") == 0
    for path, days in ((ours, 3), (theirs, 100)):
        os.utime(path, (0, time.time() - days * 86_400))
    assert (expire(tmp_path / "ours"), expire(tmp_path / "theirs")) == (1, 0)


def test_a_file_that_holds_pickles_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "1.npz", about=np.array(json.dumps([{}]), dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        list(exchanges(tmp_path / "1.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"], ids=["empty", "cut"])
def test_a_file_that_is_damaged_is_told_as_such(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "1.npz").write_bytes(content)
    with pytest.raises(ValueError, match="holds no exchanges"):
        list(exchanges(tmp_path / "1.npz"))


def test_so_is_one_of_a_server_that_tells_more_of_a_request(tmp_path: Path) -> None:
    """A later version's: who compares goes on with the next file."""
    kept = dict.fromkeys(("id", "model", "version"), "1") | {"answered_s": 0.0, "digests": {}, "who": "Ada"}
    np.savez(tmp_path / "1.npz", about=np.array(json.dumps([kept])))
    with pytest.raises(ValueError, match="unexpected keyword argument 'who'"):
        list(exchanges(tmp_path / "1.npz"))


def test_the_settings_that_come_with_pareflow_are_read(checkout: Path, tmp_path: Path) -> None:
    assert request_log.read(checkout / "configs" / "monitoring" / "requests.yaml").share == 0.05
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("share: 2\nkeep_day: 3\n")
    with pytest.raises(SpecError, match="keep_days") as error:
        request_log.read(wrong)
    assert len(error.value.problems) == 2
