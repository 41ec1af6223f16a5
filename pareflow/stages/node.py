"""A run as the machine sees it that builds for it: a node of a cluster, or the flow's own machine."""

import dataclasses
import os
import platform
from pathlib import Path

from pareflow.errors import NodeError
from pareflow.measuring.environment import environment
from pareflow.stages.jobs import original
from pareflow.stages.run import Run

DATA_DIR = "PAREFLOW_NODE_DATA_DIR"
"""Set on a node, it names the data folder there; else it is at the same path on every node."""


def here(run: Run) -> Run:
    """The run with the data folder of this machine, and its environment: what it evaluates is of that.

    Raises: NodeError, naming the machine, where it lacks the pipeline or what the flow made.
    """
    run = dataclasses.replace(run, environment=environment())
    named = os.environ.get(DATA_DIR)
    if named:
        run = dataclasses.replace(run, data_dir=Path(named))
    if not run.config.is_file():
        raise _unfit(
            "the pipeline's folder must be at the same path on every machine that builds",
            f"has no {run.config}",
            "Copy the folder there, data included, or share it",
        )

    def absent(_: Path) -> None:
        raise _unfit(
            "every machine that builds must find the trained original in its store",
            f"does not in {run.store.root}",
            "Share the data folder, or name a store that all reach with --store s3://bucket/prefix",
        )

    run.store.ensure(original(run.facts.digest).id, absent)  # a neighbour who brings it here is waited for
    return run


def _unfit(must: str, found: str, remedy: str) -> NodeError:
    return NodeError(must, f"`{platform.node()}` {found}", remedy)
