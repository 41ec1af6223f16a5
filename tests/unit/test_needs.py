"""What steps need, and what machines hold: counted by hand, and that no machine is overfilled."""

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.catalog import BACKENDS
from pareflow.hardware import probe
from pareflow.hardware.needs import Machine, Needs, granted, held, lacking, this_machine
from pareflow.stages import optimization
from pareflow.stages.building import needs_of
from pareflow.stages.run import Row
from pareflow.variant import Recipe, Step
from tests.conftest import Trained

SMALL, WITH_GPU = Machine(2, 0, 4000), Machine(8, 1, 16000)
needs = st.builds(Needs, st.integers(1, 9), st.integers(0, 3), st.none() | st.integers(1, 9000))
machines = st.lists(
    st.builds(Machine, st.integers(0, 8), st.integers(0, 2), st.integers(1, 8000)), min_size=1, max_size=4
)


@pytest.mark.parametrize(
    ("step", "cluster", "words"),
    [
        (Needs(1), [SMALL], None),
        (Needs(64), [SMALL], None),  # fewer processors are only slower
        (Needs(gpus=1), [SMALL], "needs 1 GPU, the cluster has none"),
        (Needs(gpus=2), [SMALL, WITH_GPU], "needs 2 GPUs, the cluster has 1"),
        (Needs(gpus=1), [SMALL, WITH_GPU], None),
        (Needs(memory_mib=20000), [SMALL, WITH_GPU], "needs 20000 MiB of memory, the cluster has 16000 MiB"),
        (
            Needs(gpus=1, memory_mib=4000),
            [Machine(1, 1, 1000), SMALL],
            "needs 1 GPUs and 4000 MiB of memory together, the cluster has them apart",
        ),
        (Needs(), [], "the cluster has no machine with processors now"),
        (Needs(), [Machine(0, 0, 2048)], "the cluster has no machine with processors now"),
        (Needs(gpus=1), [Machine(0, 1, 2048), SMALL], "needs 1 GPU, the cluster has none"),
    ],
)
def test_what_no_machine_has_is_said(step: Needs, cluster: list[Machine], words: str | None) -> None:
    assert lacking(step, cluster, "the cluster") == words


def test_one_gpu_is_used_by_one_step_at_a_time() -> None:
    gpu = Needs(gpus=1)
    assert held([gpu, gpu, gpu], [WITH_GPU]) == 1
    assert held([gpu, Needs(), gpu], [SMALL, WITH_GPU]) == 2
    assert held([Needs()] * 20, [SMALL, WITH_GPU]) == 10
    assert held([Needs(memory_mib=3000)] * 20, [SMALL, WITH_GPU]) == 1 + 5


def test_what_trains_takes_a_gpu_where_one_is_surely_there() -> None:
    trains, assumed = Needs(gpu_if_any=True), Machine(8, 1, 16000, assumed=True)
    assert granted(trains, [SMALL, WITH_GPU]) == Needs(gpus=1)
    assert granted(trains, [SMALL, assumed]) == Needs()
    assert held([trains] * 3, [WITH_GPU]) == 1
    assert held([trains] * 3, [assumed]) == 3
    assert lacking(trains, [SMALL], "the cluster") is None


def test_what_no_machine_holds_takes_no_place() -> None:
    assert held([Needs(gpus=2)] * 5 + [Needs()] * 3, [SMALL]) == 7


def test_what_is_alone_has_nothing_beside_it() -> None:
    alone = Needs(alone=True)
    assert held([Needs(), Needs(), alone, Needs()], [WITH_GPU]) == 2
    assert held([alone, Needs()], [WITH_GPU]) == 1


@given(st.lists(needs, max_size=12), machines)
def test_no_machine_is_overfilled_and_something_always_runs(steps: list[Needs], some: list[Machine]) -> None:
    count = held(steps, some)
    assert min(1, len(steps)) <= count <= len(steps)
    able = [granted(step, some) for step in steps[:count] if lacking(step, some, "here") is None]
    if len(able) > 1:
        assert sum(step.cpus for step in able) <= sum(machine.cpus for machine in some)
        assert sum(step.gpus for step in able) <= sum(machine.gpus for machine in some)
        assert sum(step.memory_mib or 0 for step in able) <= sum(machine.memory_mib for machine in some)


@given(needs, machines)
def test_what_is_granted_fits_a_machine_whole(step: Needs, some: list[Machine]) -> None:
    if lacking(step, some, "here") is None:
        given_ = granted(step, some)
        assert given_.cpus <= step.cpus
        assert any(
            m.cpus >= given_.cpus and m.gpus >= given_.gpus and m.memory_mib >= (given_.memory_mib or 0)
            for m in some
        )


def test_a_recipe_needs_what_its_steps_and_its_budget_say(trained: Trained) -> None:
    def of(**settings: object) -> Needs:
        return needs_of(trained.with_budget(memory_mib=2048), Recipe((), Step("torch_eager", settings)))

    assert of() == Needs(1, 0, 2048)
    assert of(device="cuda", threads=2) == Needs(2, 1, 2048)
    assert BACKENDS["tensorrt"]().gpus() == 1


def test_a_build_takes_as_many_threads_as_any_variant_and_a_gpu_if_it_trains(trained: Trained) -> None:
    target = trained.run.spec.target.model_copy(update={"threads": (1, 4)})
    run = dataclasses.replace(trained.run, spec=trained.run.spec.model_copy(update={"target": target}))
    backend, memory_mib = Step("onnxruntime", {"threads": 1}), run.facts.memory_mib
    assert needs_of(run, Recipe((Step("fp16"),), backend)) == Needs(4, memory_mib=memory_mib)
    trains = Needs(4, memory_mib=memory_mib, gpu_if_any=True)
    assert needs_of(run, Recipe((Step("qat_int8"),), backend)) == trains


def test_a_build_holds_the_data_as_the_workload_did_by_itself(trained: Trained) -> None:
    """Where the pipeline allows it no other memory. No key holds the figure, which is another each time."""
    measured = trained.run.facts.memory_mib
    assert measured is not None
    assert measured > 10
    recipe, facts = Recipe((), Step("onnxruntime")), dataclasses.replace(trained.run.facts, memory_mib=4000)
    run = dataclasses.replace(trained.run, facts=facts)
    assert needs_of(run, recipe).memory_mib == 4000
    assert held([needs_of(run, recipe)] * 5, [Machine(64, 0, 9000)]) == 2
    allowed = dataclasses.replace(trained.with_budget(memory_mib=2048), facts=facts)
    assert needs_of(allowed, recipe).memory_mib == 2048
    assert (run.id, run.facts) == (trained.run.id, trained.run.facts)


def test_a_row_that_no_machine_holds_is_unavailable_and_says_why(trained: Trained) -> None:
    run, row = trained.with_budget(memory_mib=2**30), Row(Recipe((), Step("onnxruntime")))
    placed = optimization.placed(run, row, [this_machine()], "this machine")
    assert placed.status == "unavailable"
    assert str(placed.reason).startswith(f"needs {2**30} MiB of memory, this machine has ")
    assert optimization.placed(trained.run, row, [this_machine()], "this machine") == row


def test_this_machine_holds_what_its_control_groups_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "memory_mib", lambda: 8192)
    for limit_mib, held_mib in ((None, 8192), (512, 512)):
        monkeypatch.setattr(probe, "memory_limit_mib", lambda limit_mib=limit_mib: limit_mib)
        assert this_machine().memory_mib == held_mib


def test_where_nothing_tells_of_gpus_the_step_itself_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(count: int) -> Callable[[], int]:
        return lambda: count

    for count, counted in ((0, 1), (1, 1), (4, 4)):
        monkeypatch.setattr("pareflow.hardware.probe.gpus", told(count))
        assert this_machine().gpus == counted


@pytest.mark.parametrize(
    ("quota", "limit_mib", "left"),
    [(None, None, (16, 64000)), (2.5, None, (2, 64000)), (0.5, 2000, (1, 2000)), (None, 2000, (16, 2000))],
)
def test_a_machine_holds_what_its_container_leaves(
    quota: float | None, limit_mib: int | None, left: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"cores": range(16), "memory_mib": 64000, "cpu_quota": quota, "memory_limit_mib": limit_mib}
    for name, value in told.items():
        monkeypatch.setattr(f"pareflow.hardware.probe.{name}", lambda value=value: value)
    machine = this_machine()
    assert (machine.cpus, machine.memory_mib) == left
