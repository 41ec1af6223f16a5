"""Compilers, their settings and graph optimizations: claimed against measured, and what graphs became."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import recipes
from claims import Claim, main

from pareflow.compiler.graph_passes import PASSES
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.measuring.graph_report import GraphReport, graph_report
from pareflow.stages import optimization
from pareflow.stages.run import Row
from pareflow.workload import load

GRAPHS: tuple[tuple[str, dict[str, str]], ...] = (
    ("zoo", {"architecture": "resnet18"}),
    ("zoo", {"architecture": "mobilenet_v2"}),
    ("zoo", {"architecture": "efficientnet_b0"}),
    ("intent", {}),
)


def measure(quick: bool) -> Sequence[Claim]:
    """Nodes per graph and optimization; then, unless `quick`, the speed of every recipe."""
    graphs = [claim for name, settings in GRAPHS for claim in _nodes(name, settings)]
    return graphs if quick else [*graphs, *recipes.measure(Path(__file__).with_suffix(".yaml"), quick)]


def _nodes(name: str, settings: dict[str, str]) -> Iterator[Claim]:
    """How many times fewer nodes all optimizations leave, and all but one."""
    run = recipes.run_of(name, 0, settings)
    row = optimization.make(run, Row(recipes.STRONG))
    folder = run.store.find(str(row.id))
    assert folder is not None  # the strong baseline always compiles
    feeds = load(run.spec.workload, run.folder).example(1)
    for without in ((), *((one,) for one in PASSES if PASSES[one])):
        report = graph_report(folder, OnnxRuntime(without=without), feeds)
        before, after = report.before.total(), report.after.total()
        fused = ", ".join(f"{kind} {count}" for kind, count in report.fused.most_common(4))
        shown = (
            f"graph, {' '.join([name, *settings.values()])}: {f'without {without[0]}' if without else 'all'}"
        )
        yield Claim(shown, 1, before / after, "× fewer nodes", before, "at least", note=f"{after}: {fused}")
        if not without:
            yield from _activations(shown, report)


def _activations(shown: str, report: GraphReport) -> Iterator[Claim]:
    """How much less memory activations take where it is used again, and the graph is optimized."""
    before, after = report.activations
    if before.separate_bytes and after.planned_bytes:
        less = before.separate_bytes / after.planned_bytes
        separate, planned = (size / 2**20 for size in (before.separate_bytes, after.planned_bytes))
        note = f"{separate:.1f} MiB to at least {planned:.1f} (computed)"
        yield Claim(f"{shown}, activations", 1, less, "× less memory", 1, "at least", note=note)


if __name__ == "__main__":
    main("compiler", measure)
