"""What a step needs of a machine, and how many such steps machines hold side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pareflow.hardware import probe


@dataclass(frozen=True, slots=True)
class Needs:
    """What one step takes; a `memory_mib` of None is not declared.

    With `gpu_if_any` it computes on a GPU where it finds one, and does without else.
    One that is `alone` has nothing beside it, whatever there is room for.
    """

    cpus: int = 1
    gpus: int = 0
    memory_mib: int | None = None
    gpu_if_any: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What one machine offers to steps. Of `assumed` GPUs nobody knows whether they are there."""

    cpus: int
    gpus: int
    memory_mib: int
    assumed: bool = False


def this_machine() -> Machine:
    """What control groups leave this process of it. Where `nvidia-smi` tells of no GPU it is counted as one:
    whether there is one, the step itself says."""
    gpus = probe.gpus()
    return Machine(probe.usable_cores(), gpus or 1, probe.usable_memory_mib(), assumed=not gpus)


def lacking(needs: Needs, machines: Sequence[Machine], where: str) -> str | None:
    """Why none of the machines can hold the step, or None. Processors are shared: fewer are only slower."""
    if any(_can(machine, needs) for machine in machines):
        return None
    machines = [machine for machine in machines if machine.cpus > 0]
    if not machines:
        return f"{where} has no machine with processors now"
    gpus = max(machine.gpus for machine in machines)
    memory_mib = max(machine.memory_mib for machine in machines)
    if needs.gpus > gpus:
        return f"needs {needs.gpus} GPU{'s' * (needs.gpus > 1)}, {where} has {gpus or 'none'}"
    if needs.memory_mib is not None and needs.memory_mib > memory_mib:
        return f"needs {needs.memory_mib} MiB of memory, {where} has {memory_mib} MiB"
    return f"needs {needs.gpus} GPUs and {needs.memory_mib} MiB of memory together, {where} has them apart"


def granted(needs: Needs, machines: Sequence[Machine]) -> Needs:
    """The needs, with no more processors than the largest machine has that can hold the step, and with the
    GPU that it would find."""
    finds = needs.gpu_if_any and any(m.gpus and not m.assumed and _can(m, needs) for m in machines)
    asked = replace(needs, gpus=max(needs.gpus, int(finds)), gpu_if_any=False)
    most = max((machine.cpus for machine in machines if _can(machine, asked)), default=asked.cpus)
    return replace(asked, cpus=min(asked.cpus, most))


def held(steps: Sequence[Needs], machines: Sequence[Machine]) -> int:
    """How many of the first steps the machines hold side by side, at least one.

    A step is put on the first machine that has room; one that no machine can hold takes none.
    """
    room = list(machines)
    for count, needs in enumerate(steps):
        if needs.alone:
            return max(count, 1)
        if lacking(needs, machines, ""):
            continue
        asked = granted(needs, machines)
        place = next((i for i, m in enumerate(room) if _can(m, asked) and m.cpus >= asked.cpus), None)
        if place is None:
            return max(count, 1)
        left = room[place]
        room[place] = replace(
            left,
            cpus=left.cpus - asked.cpus,
            gpus=left.gpus - asked.gpus,
            memory_mib=left.memory_mib - (asked.memory_mib or 0),
        )
    return len(steps)


def _can(machine: Machine, needs: Needs) -> bool:
    """A machine without processors computes nothing: the head of a Ray cluster may be one."""
    memory_mib = needs.memory_mib or 0
    return machine.cpus > 0 and machine.gpus >= needs.gpus and machine.memory_mib >= memory_mib
