"""`pareflow split`: every placement measured here, kept in the store, and both halves written."""

import io
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows.cli import app
from flows.tables import serving as tables
from pareflow.errors import InputError, TransientError, VariantError
from pareflow.measuring.arena import Protocol
from pareflow.runtime.placement import ON_DEVICE, ON_SERVER, Link
from pareflow.serving.halves import session_of
from pareflow.spec import read_profile
from pareflow.stages import splitting
from pareflow.stages.run import Run

pytestmark = pytest.mark.usefixtures("rogues")
ROOT = Path(__file__).parents[2]
LINK = Link(bandwidth_mbit=20, round_trip_ms=10, slower=8)


def shown(document: dict[str, Any]) -> str:
    page = io.StringIO()
    tables.placements(document, Console(file=page, width=200))
    return page.getvalue()


def test_every_placement_is_measured_once_and_the_best_is_written(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "TIMING", Protocol(blocks=4, blocks_per_load=2, block_ms=1, most=6))
    run: Run = trained.run
    document = splitting.split(run, LINK, into=tmp_path / "halves")
    layers = [row["layer"] for row in document["placements"]]
    assert layers[:2] == [ON_DEVICE, ON_SERVER]
    assert len(layers) >= 4
    on_device, on_server, *cuts = document["placements"]
    assert on_device["bytes"] == on_device["transfer_ms"] == 0
    assert on_device["device_ms"]["estimate"] == pytest.approx(8 * on_server["server_ms"]["estimate"])
    assert on_server["transfer_ms"] == pytest.approx(10 + on_server["bytes"] * 8 / 20_000)
    for row in cuts:
        sides = row["device_ms"]["estimate"] + row["transfer_ms"] + row["server_ms"]["estimate"]
        assert row["total_ms"]["estimate"] == pytest.approx(sides)
        assert row["reason"] is None
    # the whole takes microseconds, and every round trip 10 ms
    assert document["chosen"] == ON_DEVICE
    assert [row["chosen"] for row in document["placements"]] == [True, *[False] * (len(layers) - 1)]
    table = shown(document)
    assert "device ms (estimated)" in table
    assert "a device of 8 times this machine's time" in table
    feeds = {"images": np.ones((1, 1, 8, 8), dtype=np.float32)}
    answers = session_of(tmp_path / "halves" / "device", None).run(feeds)
    assert answers["output"].shape == (1, 4)
    # another link is another sum over the same measurements; this machine as the device is no estimate
    again = splitting.split(run, Link(bandwidth_mbit=1e6, round_trip_ms=0))
    assert [row["server_ms"] for row in again["placements"]] == [
        row["server_ms"] for row in document["placements"]
    ]
    assert "device ms (estimated)" not in shown(again)
    splitting.split(run, LINK, into=tmp_path / "third", at=2)
    with (
        closing(session_of(tmp_path / "third" / "device", "http://127.0.0.1:9")) as session,
        pytest.raises(TransientError, match="must answer"),
    ):
        session.run(feeds)  # it asks a server for the rest, and there is none
    for into, at in ((tmp_path / "halves", None), (tmp_path / "fourth", 99), (tmp_path / "fifth", -1)):
        with pytest.raises(InputError):
            splitting.split(run, LINK, into=into, at=at)
    fewer = json.loads((splitting.cut(run, most=1)[1] / "cuts.json").read_text())
    assert (len(fewer["rows"]), len(fewer["left_out"])) == (3, len(cuts) - 1)


def test_a_profile_says_how_slow_the_device_is(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Pi's 153.6 GFLOP/s and 17.1 GB/s against twice as much: the arithmetic decides, then the memory."""
    profile = read_profile(ROOT / "configs/devices/pi5.yaml")
    target = trained.run.spec.target.model_copy(update={"profile": profile})
    run = replace(trained.run, spec=trained.run.spec.model_copy(update={"target": target}))
    link = Link(bandwidth_mbit=20, round_trip_ms=10)
    for rates, slower in (((307.2, 17.1), 2), ((153.6, 51.3), 3)):
        found = dict(zip(("matrix_gflops", "copy_gb_per_s"), rates, strict=True))
        monkeypatch.setattr(splitting, "ceilings", lambda run, threads, found=found: found)
        assert splitting.for_target(run, link).slower == pytest.approx(slower)
    with pytest.raises(InputError, match="one of --slower and --target"):
        splitting.for_target(run, LINK)
    phone = read_profile(ROOT / "configs/devices/iphone.yaml")
    units = [unit for unit in phone.units if "onnxruntime" not in unit.backends]
    target = target.model_copy(update={"profile": phone.model_copy(update={"units": tuple(units)})})
    run = replace(run, spec=run.spec.model_copy(update={"target": target}))
    with pytest.raises(InputError, match="the device must run its half in onnxruntime"):
        splitting.for_target(run, link)
    assert splitting.for_target(trained.run, LINK) == LINK


def told(measurement: Any, **failures: str) -> dict[str, Any]:
    names = ("00/device", "02/device", "02/server")
    measured = {name: measurement.to_json() for name in names if name not in failures}
    return {"measurements": measured, "failures": failures}


def test_a_half_that_dies_is_a_row_with_its_reason(measured: Any) -> None:
    row = {"layer": "Relu a", "crossing": ["a"], "up_bytes": 1.0, "down_bytes": 1.0}
    measurement = measured([1.0] * 50)
    found = splitting._halves(row, 2, told(measurement, **{"02/server": "CrashedError: it must end"}))
    assert found.reason == "server: CrashedError: it must end"
    assert (found.device is not None, found.server) == (True, None)
    whole = {**row, "layer": ON_SERVER}
    on_server = splitting._halves(whole, 1, told(measurement))
    assert (on_server.device, on_server.server is not None, on_server.reason) == (None, True, None)
    with pytest.raises(VariantError, match="the whole network must be timed, but CrashedError"):
        splitting._halves(row, 2, told(measurement, **{"00/device": "CrashedError: it must end"}))


def test_an_interval_of_a_half_holds_loads_that_differ_and_is_wider_for_more_cuts(measured: Any) -> None:
    """Within a load all is equal: its median alone would be known to a point."""
    loads = [[load] * 100 for load in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8)]
    row = {"layer": "Relu a", "crossing": ["a"], "up_bytes": 1.0, "down_bytes": 1.0}
    few = told(measured(*loads))
    more = {f"{number:02}/device": measured(*loads).to_json() for number in range(3, 40)}
    many = {**few, "measurements": {**few["measurements"], **more}}
    narrow, wide = (splitting._halves(row, 2, given).device for given in (few, many))
    assert narrow is not None and wide is not None  # noqa: PT018 (for the types)
    assert narrow.low is not None and narrow.high is not None  # noqa: PT018
    assert wide.low is not None and wide.high is not None  # noqa: PT018
    assert narrow.low <= 1.3 < 1.5 <= narrow.high
    assert wide.low < narrow.low
    assert wide.confidence == pytest.approx(1 - 0.05 / 40)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--bandwidth-mbit", "0", "bandwidth_mbit: "),
        ("--round-trip-ms", "-1", "round_trip_ms: "),
        ("--slower", "nan", "slower: "),
    ],
)
def test_a_link_that_cannot_be_is_told(workloads: Path, option: str, value: str, said: str) -> None:
    options = {"--bandwidth-mbit": "20", "--round-trip-ms": "10", option: value}
    words = [word for pair in options.items() for word in pair]
    result = CliRunner().invoke(app, ["split", str(workloads / "images.yaml"), *words])
    assert isinstance(result.exception, InputError)
    assert said in str(result.exception)
