"""`bench/peers.py`: what its rows say, and its peers' scripts, run by this interpreter where it can."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pareflow.compiler.environment import pins
from pareflow.gate import Check, Verdict
from pareflow.intervals import speedup
from pareflow.measurement import Interval, Measurement
from pareflow.stages import building
from pareflow.stages.run import Row
from pareflow.variant import Recipe, Step

HERE = ("ort_static", "ort_dynamic", "nncf_plain", "nncf_accuracy_control")
"""Their packages are among those that the tests install."""


@pytest.fixture
def peers(bench: Callable[[str], Any]) -> Any:
    return bench("peers")


@pytest.fixture
def files(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """`peer_files`, every environment being this interpreter's."""
    module = bench("peer_files")
    monkeypatch.setattr(module.PeerEnvironment, "ensure", lambda self: Path(sys.executable))
    return module


@pytest.fixture
def row(measured: Callable[..., Measurement]) -> Callable[..., Row]:
    """A judged row that takes so many ms; it misses its size where it does not pass."""
    baseline = measured(*[[3.0] * 20] * 12)

    def build(ms: float, passes: bool = True, decision: Any = None) -> Row:
        found = measured(*[[ms] * 20] * 12)
        decision = decision or ("promote" if passes else "reject")
        size = Check("size.max_mib", 1, 2, 2, 2, decision, "2 against at most 1")
        drop = Check("quality.max_drop", 0.01, 0.0, -0.005, 0.005, "promote", "nothing lost", 400)
        verdict = Verdict("candidate", "here", decision, (size, drop))
        return Row(
            Recipe((), Step("onnxruntime")),
            measurement=found,
            speedup=speedup(baseline, found),
            verdict=verdict,
        )

    return build


def comparison(peers: Any, winner: Row | None, **others: Row) -> Any:
    return peers.Comparison("digits", "winner", "latency_p50", winner, others)


def test_the_fastest_peer_is_one_that_meets_the_sla(peers: Any, row: Callable[..., Row]) -> None:
    found = comparison(peers, row(1.0), slow=row(2.5), quick=row(1.5), wrong=row(0.5, passes=False))
    assert found.fastest == "quick"
    assert found.over("quick").estimate == pytest.approx(1.5)


def test_a_peer_that_misses_the_sla_says_which_clause(peers: Any, row: Callable[..., Row]) -> None:
    claims = list(peers._claims(comparison(peers, row(1.0), wrong=row(0.5, passes=False))))
    by_name = {claim.name: claim for claim in claims}
    assert "size.max_mib" in by_name["digits, wrong: speed over ORT fp32"].note
    assert by_name["digits, wrong: speed over ORT fp32"].measured == pytest.approx(6)
    assert by_name["digits, wrong: lost"].met
    over = by_name["digits: winner over the fastest peer that meets the SLA"]
    assert over.measured is None
    assert over.note == "no peer meets the SLA"


def test_a_faster_peer_in_doubt_is_told(peers: Any, row: Callable[..., Row]) -> None:
    found = comparison(peers, row(1.0), sure=row(2.0), unsure=row(1.5, decision="inconclusive"))
    assert (found.fastest, found.doubtful) == ("sure", "unsure")
    (claim,) = (claim for claim in peers._claims(found) if "cannot tell" in claim.name)
    assert claim.measured == pytest.approx(1.5)
    slower = comparison(peers, row(1.0), sure=row(2.0), unsure=row(2.5, decision="inconclusive"))
    assert slower.doubtful is None


def test_a_peer_without_a_file_is_a_row_that_says_why(peers: Any, row: Callable[..., Row]) -> None:
    lost = Row(Recipe((), Step("onnxruntime")), status="failed", reason="it says: no such operator")
    claims = list(peers._claims(comparison(peers, row(1.0), lost=lost)))
    (claim,) = (claim for claim in claims if claim.name.startswith("digits, lost"))
    assert claim.measured is None
    assert claim.note == "it says: no such operator"


def test_workloads_count_where_the_winner_is_much_faster(peers: Any, row: Callable[..., Row]) -> None:
    found = [comparison(peers, row(1.0), peer=row(ms)) for ms in (1.4, 1.6, 2.0)]
    alone = comparison(peers, row(1.0), peer=row(0.5, passes=False))
    (claim,) = peers.often([*found, alone], False)
    assert claim.measured == 2
    assert claim.samples == 3
    assert claim.met


def test_a_workload_whose_gain_may_be_less_does_not_count(
    peers: Any, row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers.Comparison, "over", lambda *_: Interval(1.6, 1.4, 1.8, 12))
    (claim,) = peers.often([comparison(peers, row(1.0), peer=row(1.6))], False)
    assert (claim.measured, claim.samples) == (0, 1)


def test_every_peer_has_its_script_and_a_lock_of_what_it_imports(files: Any) -> None:
    known_as = {"olive": "olive-ai"}
    for peer in files.PEERS:
        tree = ast.parse((files.FOLDER / f"{peer.script}.py").read_text())
        names = [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
        names += [str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        ours = {path.stem for path in files.FOLDER.glob("*.py")}
        foreign = {name.partition(".")[0] for name in names} - ours - sys.stdlib_module_names
        locked = pins((files.FOLDER / f"{peer.environment}.txt").read_text())
        assert {known_as.get(name, name) for name in foreign} <= locked.keys()


@pytest.mark.parametrize("script", HERE)
def test_a_peer_gives_a_variant_that_answers(script: str, files: Any, trained: Any) -> None:
    peer = next(peer for peer in files.PEERS if peer.script == script)
    made = files.make(trained.run, peer, trained.strong)
    assert made.status == "ok", made.reason
    judged = building.evaluate(trained.run, made, "search")
    assert judged.quality is not None
    assert judged.quality.samples == trained.run.facts.sizes["search"]


def test_a_peer_that_fails_is_one_failed_row(
    files: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad.py").write_text("raise SystemExit('it wants another model')")
    (tmp_path / "ort.txt").touch()
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    made = files.make(trained.run, files.Peer("bad", "bad", "ort"), trained.strong)
    assert made.status == "failed"
    assert "it wants another model" in str(made.reason)


def test_where_nothing_was_compared_nothing_is_claimed(peers: Any) -> None:
    (claim,) = peers.often([], False)
    assert claim.met is None


@pytest.mark.parametrize("decision", ["reject", "inconclusive", None])
def test_a_winner_that_does_not_meet_the_sla_loses_to_a_peer_that_does(
    decision: str | None, peers: Any, row: Callable[..., Row]
) -> None:
    winner = None if decision is None else row(1.0, decision=decision)
    found = comparison(peers, winner, sure=row(2.0), unsure=row(1.5, decision="inconclusive"))
    claims = {claim.name: claim for claim in peers._claims(found)}
    over = claims["digits: winner over the fastest peer that meets the SLA"]
    assert (over.measured, over.met) == (0, False)
    assert over.note.startswith("sure is the fastest; ours: ")
    (doubtful,) = (claim for name, claim in claims.items() if "cannot tell" in name)
    assert doubtful.measured is None
    (often,) = peers.often([found], False)
    assert (often.measured, often.samples) == (0, 1)


def test_where_neither_meets_the_sla_nothing_is_claimed(peers: Any, row: Callable[..., Row]) -> None:
    found = comparison(peers, None, wrong=row(2.0, passes=False))
    over = next(claim for claim in peers._claims(found) if "over the fastest" in claim.name)
    assert (over.met, over.note) == (None, "no peer meets the SLA")


@pytest.mark.parametrize(("status", "winner"), [(0, "b"), (3, "b"), (3, None)])
def test_a_run_has_the_winner_that_its_document_names(
    status: int, winner: str | None, peers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may not have been registered: then it exits with 3, too."""
    said = json.dumps({"winner": winner, "variants": [{"id": "a"}, {"id": "b"}]})
    code = f"print({said!r}); raise SystemExit({status})"
    run = importlib.import_module("pipeline_run")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: done)
    document, found = run.ended(Path("pipeline.yaml"), remeasure=False)
    assert len(document["variants"]) == 2
    assert (found and found["id"]) == winner


def test_a_peer_is_told_what_the_sla_lets_be_lost(
    files: Any, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "told.py").write_text("import sys; raise SystemExit(f'it may lose {sys.argv[5]}')")
    (tmp_path / "ort.txt").touch()
    monkeypatch.setattr(files, "FOLDER", tmp_path)
    made = files.make(trained.run, files.Peer("told", "told", "ort"), trained.strong)
    assert f"it may lose {trained.run.spec.sla.quality.max_drop}" in str(made.reason)


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16"), (False, "f32")])
def test_openvino_runs_a_peers_model_in_the_precision_that_it_takes_by_itself(
    has: bool, precision: str, files: Any, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.probe, "has_bf16", lambda: has)
    peer = next(peer for peer in files.PEERS if peer.script == "nncf_plain")
    assert peer.runtime(trained.strong).precision == precision
