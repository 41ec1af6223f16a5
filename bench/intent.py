"""The intent transformer: accuracy lost, and speed at fixed sequence lengths, of what `optimize` chooses."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import Claim, main
from pipeline_run import DATA_DIR, chosen

from pareflow import spec, workload
from pareflow.hardware.device import device_lock
from pareflow.measurement import Interval, speedup
from pareflow.measuring.arena import Arena, Contestant, Protocol, write_feeds
from pareflow.stages.run import Run
from pareflow.variant import Step

CONFIG = Path(__file__).parents[1] / "configs" / "intent" / "pipeline.yaml"
LENGTHS = (16, 32, 64, 128)
TEXTS = 32


def measure(quick: bool) -> Sequence[Claim]:
    """Claims of the chosen variant; `quick` takes two sequence lengths and fewer blocks."""
    document, winner = chosen(CONFIG)
    run = Run.open(spec.read(CONFIG), CONFIG, DATA_DIR)
    drop = next(c for c in winner["verdict"]["checks"] if c["clause"] == "quality.max_drop")
    lost = Claim(
        "intent: accuracy lost",
        0.01,
        drop["estimate"],
        "share",
        document["splits"]["verdict"],
        "at most",
        drop["low"],
        drop["high"],
        f"original {document['baseline']['quality']['value']:.4f}",
    )
    lengths = (LENGTHS[0], LENGTHS[-1]) if quick else LENGTHS
    blocks = 12 if quick else 30
    return [lost, *(_claim(run, document["baseline"], winner, length, blocks) for length in lengths)]


def _claim(
    run: Run, baseline: Mapping[str, Any], winner: Mapping[str, Any], length: int, blocks: int
) -> Claim:
    ratio = ratio_at(run, [_contestant(run, row) for row in (baseline, winner)], length, blocks)
    ran = winner["ran"]
    return Claim(
        f"intent: p50 over ONNX Runtime fp32, 1×{length}, one thread",
        2.5,
        ratio.estimate,
        "×",
        ratio.samples,
        "at least",
        ratio.low,
        ratio.high,
        f"{winner['recipe']}; ran {ran['precision']} on {ran['runtime']} {ran['version']}",
    )


def ratio_at(run: Run, contestants: Sequence[Contestant], length: int, blocks: int) -> Interval:
    """The speedup of the second contestant over the first, on real texts of exactly `length` tokens."""
    definition = workload.define(run.spec.workload, run.folder)
    fixed = definition.model_copy(update={"pad_to_length": length, "max_length": length})
    texts = definition.data().search.samples[:TEXTS]
    with tempfile.TemporaryDirectory() as folder, device_lock("cpu", exclusive=True) as descriptor:
        feeds = Path(folder) / "feeds.npz"
        write_feeds([fixed.preprocess(texts[i : i + 1]) for i in range(TEXTS)], feeds)
        arena = Arena(
            contestants,
            feeds=feeds,
            batch_size=1,
            environment=run.environment.fingerprint,
            workload=(run.spec.workload, run.folder),
            limits=run.limits,
            logs=run.data_dir / "logs",
            descriptors=(descriptor,),
        )
        with arena:
            measured = arena.measure(Protocol(blocks=blocks, block_ms=100))
        for error in arena.failures.values():
            raise error
    baseline, candidate = (measured[contestant.variant] for contestant in contestants)
    return speedup(baseline, candidate)


def _contestant(run: Run, row: Mapping[str, Any]) -> Contestant:
    artifact = run.store.find(row["id"])
    assert artifact is not None  # the run has just judged it
    return Contestant(row["id"], artifact, Step.from_json(row["steps"][-1]), row["size_mib"])


if __name__ == "__main__":
    main("intent", measure)
