"""Settings of the system around one executable: huge pages, malloc's arenas, another allocator.

Each is the same artifact in a process with another environment, timed in interleaved blocks beside the
plain one, and pinned as every timing is. pareflow sets none of them: what does not help is no option.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import recipes
from claims import Claim, main

from pareflow.hardware import topology
from pareflow.hardware.device import device_lock
from pareflow.intervals import speedup
from pareflow.measuring.arena import Arena, Contestant, Protocol
from pareflow.stages import baseline, optimization
from pareflow.stages.run import Row
from pareflow.stages.timing import Inputs, conditions, contestant

NETWORKS: tuple[tuple[str, dict[str, str]], ...] = (("zoo", {"architecture": "resnet18"}), ("intent", {}))
PLAIN = "plain"


def settings() -> dict[str, Mapping[str, str]]:
    """The environment of each, by name: those of glibc, and each allocator that is installed."""
    libraries = {name: library for name, library in topology.allocators().items() if library}
    return {
        PLAIN: {},
        "huge pages by madvise": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
        "one arena": {"MALLOC_ARENA_MAX": "1"},
        "memory never given back": {
            "MALLOC_TRIM_THRESHOLD_": str(2**40),
            "MALLOC_MMAP_THRESHOLD_": str(2**25),
        },
        **{name: {"LD_PRELOAD": library} for name, library in libraries.items()},
    }


def measure(quick: bool) -> Sequence[Claim]:
    """How many times faster each setting is than none; a claim of 1.02 is met where it helps at all."""
    networks = NETWORKS[:1] if quick else NETWORKS
    return [claim for name, given in networks for claim in _claims(name, given, quick=quick)]


def _claims(name: str, given: dict[str, str], *, quick: bool) -> Iterator[Claim]:
    run = recipes.run_of(name, 0, given)
    baseline.train(run)
    made = contestant(run, optimization.make(run, Row(recipes.STRONG)))
    protocol = Protocol(blocks=12 if quick else 60)
    contestants = [replace(made, variant=setting) for setting in settings()]
    with (
        device_lock("cpu", exclusive=True) as descriptor,
        Surrounded(contestants, **conditions(run, Inputs(1), descriptor)) as arena,
    ):
        found = arena.measure(protocol)
    note = f"huge pages are `{topology.huge_pages()}`"
    for setting in settings():
        if setting == PLAIN:
            continue
        shown = f"{setting}, {' '.join([name, *given.values()])}"
        if setting not in found or PLAIN not in found:
            yield Claim(shown, 1.02, None, "× faster", 0, "at least", note=str(arena.failures.get(setting)))
            continue
        gain = speedup(found[PLAIN], found[setting])
        yield Claim(
            shown, 1.02, gain.estimate, "× faster", gain.samples, "at least", gain.low, gain.high, note=note
        )


class Surrounded(Arena):
    """An arena whose contestants run in the environment that their name stands for."""

    def _start(self, contestant: Contestant) -> Any:
        with _environment(settings()[contestant.variant]):
            return super()._start(contestant)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


if __name__ == "__main__":
    main("processor", measure)
