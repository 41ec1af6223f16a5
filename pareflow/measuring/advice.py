"""What a profile amounts to: the bottleneck, and how much each family of techniques can help at most."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

REACH = {
    "quantization": ("matrix", "narrower numbers for the matrix operators of inference"),
    "low rank": ("matrix", "smaller factors for the matrix operators of inference"),
    "pruning": ("inference", "whole channels or layers of inference left out"),
    "distillation": ("inference", "a smaller network in the place of this one"),
    "compiler": ("inference", "the same network fused, laid out and scheduled otherwise"),
    "batching": ("inference", "dispatch and weights shared by several samples: throughput, not one latency"),
    "caching": ("answer", "all that lies between a request's body and its answer, when the answer is known"),
    "pipelining": ("others", "all but the slowest stage, run beside it: throughput, not one latency"),
    "request code": ("around", "what surrounds the network: no technique changes it, its own code does"),
}
"""Family -> which part of a request it can touch, and how. Source of the bound: Amdahl, 1967."""


def advice(
    stages: Sequence[Mapping[str, Any]],
    operators: Sequence[Mapping[str, Any]] = (),
    counted_share: float | None = None,
    bound: str | None = None,
) -> dict[str, Any]:
    """`bottleneck` (the slowest stage), its `share`, `at_most`, `families` by reach, and it all in `words`.

    `share` is the part of a request that a family can touch, `at_most` how many times faster the request
    would be if that part were free; None where nothing else would be left. `counted_share` is the part of
    inference in matrix operators; where it is not known, all of it is taken. `bound` is the roofline's.
    """
    worst = max(stages, key=lambda stage: float(stage["share"]))
    shares = _reached(stages, float(worst["share"]), 1.0 if counted_share is None else counted_share)
    families: list[dict[str, Any]] = [
        {"family": name, "share": shares[part], "at_most": at_most(shares[part]), "why": why}
        for name, (part, why) in REACH.items()
    ]
    families.sort(key=lambda family: -family["share"])
    found = {
        "bottleneck": worst["name"],
        "share": float(worst["share"]),
        "bound": bound,
        "families": families,
    }
    return {**found, "at_most": at_most(found["share"]), "words": " ".join(_words(found, operators))}


def at_most(share: float) -> float | None:
    """Amdahl's bound: how many times faster the whole is if `share` of it took no time."""
    return 1 / (1 - share) if share < 1 else None


def _reached(stages: Sequence[Mapping[str, Any]], worst: float, matrix: float) -> dict[str, float]:
    """The share of a request in each part that a family can touch."""
    part = {str(stage["name"]): float(stage["share"]) for stage in stages}
    inference = part.get("inference", 0.0)
    outside = part.get("load", 0.0) + part.get("serialise", 0.0)
    reached = {
        "matrix": inference * matrix,
        "inference": inference,
        "answer": 1 - outside,
        "others": 1 - worst,
        "around": 1 - inference,
    }
    return {name: min(max(share, 0.0), 1.0) for name, share in reached.items()}


def _words(found: Mapping[str, Any], operators: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The slowest stage and its bound, the operator that dominates inference, what quantization can do."""
    text = f"{found['bottleneck']} takes {found['share']:.0%} of a request"
    limit = at_most(found["share"])
    yield f"{text}; {_freed(limit)}." if limit else f"{text}."
    if operators:
        yield f"Within inference, {operators[0]['name']} takes {operators[0]['share']:.0%}."
    quantization = next(family for family in found["families"] if family["family"] == "quantization")
    if found["bottleneck"] != "inference" and quantization["at_most"]:
        times = f"{quantization['at_most']:.1f}"
        yield f"Quantization reaches {quantization['share']:.0%} of it: {times} times faster at most."
    if found["bottleneck"] == "inference" and found["bound"] == "overhead":
        yield "It is near no ceiling of the machine: less arithmetic alone may not make it faster."


def _freed(limit: float) -> str:
    return f"making it free would make the request {limit:.1f} times faster at most"
