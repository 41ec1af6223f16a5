"""The environment that a measurement belongs to, and the one that a variant's verdict does."""

import platform
from dataclasses import replace

from pareflow.catalog import BACKENDS, Member, installed_version
from pareflow.compiler.environment import pins
from pareflow.compiler.worker import WorkerBackend
from pareflow.hardware import probe
from pareflow.measurement import Environment

RUNTIMES = ("numpy", "onnxruntime", "openvino", "torch")
LIBRARIES = {"tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")}
"""By backend: the distributions that bring a library of its runtime, where those that it requires do not."""


def environment() -> Environment:
    """This machine and the runtimes installed on it."""
    versions = {name: installed_version(name) for name in RUNTIMES}
    accelerator, driver = probe.accelerators() or (None, None)
    return Environment(
        processor=probe.processor(),
        flags=probe.instruction_flags(),
        cores=len(probe.cores()),
        memory_mib=probe.memory_mib(),
        system=probe.system(),
        python=platform.python_version(),
        runtimes={name: version for name, version in versions.items() if version is not None},
        driver=driver,
        accelerator=accelerator,
        governor=probe.governor(),
        cpu_quota=probe.cpu_quota(),
        memory_limit_mib=probe.memory_limit_mib(),
    )


def of_verdict(found: Environment, backend: str) -> Environment:
    """The environment that a verdict on what this backend runs belongs to: of libraries its own, and numpy.

    What else is installed says nothing of it: an image that serves has no torch where the one that judged
    has. Nor does a container's limit of memory, while it suffices: who serves has less than who trains.
    A backend that is not defined here is taken to run on everything.
    """
    if backend not in BACKENDS:
        return found
    return replace(found, memory_limit_mib=None, runtimes=_runs_on(found, BACKENDS[backend]))


def _runs_on(found: Environment, backend: type[Member]) -> dict[str, str]:
    """The versions of what a backend needs here; and of a worker, by its name, of what its lock pins."""
    names = ("numpy", *backend.requires, *LIBRARIES.get(backend.name, ()))
    told = {name: found.runtimes.get(name) or installed_version(name) for name in names}
    versions = {name: version for name, version in told.items() if version is not None}
    if not issubclass(backend, WorkerBackend):
        return versions
    locked = pins(backend.environment().lock.read_text())
    pinned = ", ".join(f"{name} {locked[name]}" for name in backend.runtime if name in locked)
    return {**versions, backend.name: pinned}
