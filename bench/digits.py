"""The digits workload: speed, accuracy and size of what `pareflow optimize` chooses."""

from collections.abc import Sequence
from pathlib import Path

from claims import Claim, main
from pipeline_run import chosen

CONFIG = Path(__file__).parents[1] / "configs" / "digits" / "pipeline.yaml"


def measure(quick: bool) -> Sequence[Claim]:
    """The claims of the variant that a run chose on this machine; `quick` changes nothing."""
    document, winner = chosen(CONFIG)
    baseline = document["baseline"]
    drop = next(c for c in winner["verdict"]["checks"] if c["clause"] == "quality.max_drop")
    speedup = winner["speedup"]
    ran = winner["ran"]
    note = f"{winner['recipe']}; ran {ran['precision']} on {ran['runtime']} {ran['version']}"
    return [
        Claim(
            "digits: p50 over ONNX Runtime fp32, batch 1, one thread",
            2.4,
            speedup["estimate"],
            "×",
            winner["samples"],
            "at least",
            speedup["low"],
            speedup["high"],
            note,
        ),
        Claim(
            "digits: accuracy lost",
            0.01,
            drop["estimate"],
            "share",
            document["splits"]["verdict"],
            "at most",
            drop["low"],
            drop["high"],
        ),
        Claim(
            "digits: size over the baseline's",
            0.3,
            winner["size_mib"] / baseline["size_mib"],
            "ratio",
            1,
            "at most",
        ),
    ]


if __name__ == "__main__":
    main("digits", measure)
