"""The intent transformer: accuracy lost, and speed at fixed sequence lengths, of what `optimize` chooses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import Claim, main
from pipeline_run import DATA_DIR, as_row, chosen

from pareflow import spec
from pareflow.measuring.arena import Protocol
from pareflow.stages import sweeping
from pareflow.stages.run import Run
from pareflow.stages.timing import Inputs

CONFIG = Path(__file__).parents[1] / "configs" / "intent" / "pipeline.yaml"
LENGTHS = (16, 32, 64, 128)


def measure(quick: bool) -> Sequence[Claim]:
    """Claims of the chosen variant; `quick` takes two sequence lengths and fewer blocks."""
    document, winner = chosen(CONFIG)
    run = Run.open(spec.read(CONFIG), CONFIG, DATA_DIR).aside()
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
    """The speedup on real texts of exactly `length` tokens, one at a time."""
    protocol = Protocol(blocks=blocks, block_ms=100)
    point = sweeping.point(run, as_row(baseline), as_row(winner), Inputs(1, length), protocol)
    ran, gained = winner["ran"], point["speedup"] or {}
    note = f"{winner['recipe']}; ran {ran['precision']} on {ran['runtime']} {ran['version']}"
    return Claim(
        f"intent: p50 over ONNX Runtime fp32, 1×{length}, one thread",
        2.5,
        gained.get("estimate"),
        "×",
        blocks,
        "at least",
        gained.get("low"),
        gained.get("high"),
        point["reason"] or note,
    )


if __name__ == "__main__":
    main("intent", measure)
