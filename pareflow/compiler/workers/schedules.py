"""Schedules for TVM's kernels: drawn from MetaSchedule's spaces, run, and the fastest kept, until time is up.

MetaSchedule's own tuner dies of SIGSEGV (TVM 0.27.0.post1); its rules, which make the spaces, are sound. Each
schedule is drawn, compiled and timed in a process of its own, so that one that crashes or hangs is only lost.

Seeds are counted from one. Every second schedule is drawn anew, in every search the same; between these the
fastest so far is varied, and which that is, measured times decide. So two searches may end differently.

Source: Shao et al., 2022, arXiv:2205.13603 (MetaSchedule), without its cost model: what is drawn is timed.
"""

import functools
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .forked import survived

LONGEST_S = 5.0
"""What one schedule may take to be drawn, compiled and timed."""
TOLERANCE = 1e-4
"""Of the largest value that the untuned kernel gives: what differs by more is not the same kernel."""
KEPT = 0.7
"""The share of the fastest schedule's decisions that a variation of it takes over."""


@dataclass
class Kernel:
    """A function of the module alone, how often the network calls it, and the fastest schedule so far."""

    name: str
    module: Any
    target: Any
    calls: int
    fastest_s: float = 0.0
    given: list[np.ndarray] = field(default_factory=list)
    expected: list[np.ndarray] = field(default_factory=list)
    schedule: Any = None
    tried: int = 0

    @functools.cached_property
    def generator(self) -> Any:
        return _generator(self.target.attrs["num-cores"])

    @functools.cached_property
    def spaces(self) -> list[Any]:
        """Traces whose decisions are open."""
        import tvm

        # by their registered names: the class would import the intrinsics of every processor, for 17 s
        context = tvm.get_global_func("s_tir.meta_schedule.TuneContext")(
            self.module, self.target, self.generator, None, self.name, 1, 1, None
        )
        tvm.get_global_func("s_tir.meta_schedule.TuneContextInitialize")(context)
        return [space.trace for space in self.generator.generate_design_space(self.module)]

    def start(self, limit_s: float) -> None:
        """Run it as it is; where this fails, or its spaces cannot be made, it stays so."""
        found = survived(self._plain, limit_s)
        if found is not None:
            self.given, self.fastest_s, self.expected = found

    def _plain(self) -> tuple[list[np.ndarray], float, list[np.ndarray]]:
        given = _arrays(self.module["main"]) if self.spaces else []
        return given, *timed(self.module, self.target, given)

    def search(self, limit_s: float) -> None:
        """Try one more schedule, and keep it if it is the fastest."""
        self.tried += 1
        found = survived(lambda: timed(self.drawn().mod, self.target, self.given), limit_s)
        if found is not None and found[0] < self.fastest_s and same(found[1], self.expected):
            self.fastest_s, self.schedule = found[0], self.drawn()

    def drawn(self) -> Any:
        """The schedule of this seed. Raises: ValueError where what it drew cannot be."""
        from tvm.s_tir.schedule import Schedule, Trace

        seed = self.tried
        trace = Trace(self.spaces[seed // 2 % len(self.spaces)].insts, {})
        if self.schedule is not None and seed % 2 == 0:
            fastest, chance = self.schedule.trace, random.Random(seed)
            trace = Trace(
                fastest.insts, {i: d for i, d in fastest.decisions.items() if chance.random() < KEPT}
            )
        schedule = Schedule(self.module, seed=seed, error_render_level="none")
        trace.apply_to_schedule(schedule, remove_postproc=True)
        if not all(step.apply(schedule) for step in self.generator.postprocs):
            raise ValueError(f"seed {seed} of `{self.name}` draws what cannot be compiled")
        return schedule


def tuned(module: Any, target: Any, budget_s: float) -> tuple[Any, int, int]:
    """The module with faster kernels where such were found, their number, and that of all kernels.

    Schedules go to kernels as seats do to parties, by the time that each takes of the network's.
    Source: D'Hondt's method.
    """
    ends = time.monotonic() + budget_s
    kernels = _kernels(module, target)
    for kernel in kernels:
        if (left := ends - time.monotonic()) > 0:
            kernel.start(min(left, LONGEST_S))
    running = [kernel for kernel in kernels if kernel.fastest_s]
    while running and (left := ends - time.monotonic()) > 0:
        slowest = max(running, key=lambda kernel: kernel.calls * kernel.fastest_s / (1 + kernel.tried))
        slowest.search(min(left, LONGEST_S))
    own = [kernel for kernel in running if kernel.schedule is not None]
    for kernel in own:
        function = kernel.schedule.mod["main"].without_attr("global_symbol")
        module.update_func(module.get_global_var(kernel.name), function)
    return module, len(own), len(kernels)


def _kernels(module: Any, target: Any) -> list[Kernel]:
    """Those that compute: what only reshapes is no code in the end, unless it had a schedule."""
    import tvm

    calls, kernels = _calls(module), []
    for name, function in ((variable.name_hint, f) for variable, f in module.functions.items()):
        if isinstance(function, tvm.tirx.PrimFunc) and not tvm.relax.analysis.has_reshape_pattern(function):
            alone = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
            kernels.append(Kernel(name, alone, target, calls[name]))
    return kernels


def _calls(module: Any) -> Counter[str]:
    """How often the network calls each kernel."""
    import tvm

    found = Counter[str]()

    def visit(node: Any) -> None:
        if isinstance(node, tvm.relax.Call) and node.op == tvm.ir.Op.get("relax.call_tir"):
            found[node.args[0].name_hint] += 1

    for function in module.functions.values():
        if isinstance(function, tvm.relax.Function):
            tvm.relax.analysis.post_order_visit(function.body, visit)
    return found


def _generator(cores: int) -> Any:
    """MetaSchedule's rules for processors; on one core no loop is split over threads."""
    from tvm.s_tir.meta_schedule import postproc, schedule_rule, space_generator

    reuse = schedule_rule.ReuseType("may", [1, 2], "global")
    rules = [
        schedule_rule.InlineConstantScalars(),
        schedule_rule.AutoInline(False, True, True, True, True, True, ["tirx.exp"]),
        schedule_rule.AddRFactor(16, 64),
        schedule_rule.MultiLevelTiling("SSRSRS", None, 64, None, None, reuse),
        schedule_rule.ParallelizeVectorizeUnroll(16 if cores > 1 else -1, 64, [0, 16, 64, 512], True),
        schedule_rule.RandomComputeLocation(),
    ]
    steps = [
        postproc.DisallowDynamicLoop(),
        postproc.RewriteParallelVectorizeUnroll(),
        postproc.RewriteReductionBlock(),
    ]
    return space_generator.PostOrderApply(sch_rules=rules, postprocs=steps, mutator_probs={})


def _arrays(function: Any) -> list[np.ndarray]:
    """Random values for all that a kernel takes, outputs too; whole numbers are 0 or 1, as indices may be."""
    chance = np.random.default_rng(0)
    shapes = [([int(size) for size in p.shape], str(p.dtype)) for p in function.params]
    return [
        (chance.uniform(-1, 1, shape) if "float" in dtype else chance.integers(0, 2, shape)).astype(dtype)
        for shape, dtype in shapes
    ]


def timed(module: Any, target: Any, given: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
    """The seconds of one call, the best of three times, and what it leaves of all that it takes."""
    import tvm

    library = tvm.compile(module, target).jit()
    tensors = [tvm.runtime.tensor(array) for array in given]
    library["main"](*tensors)
    answers = [tensor.numpy() for tensor in tensors]
    clock = library.time_evaluator("main", tvm.cpu(), number=1, repeat=3, min_repeat_ms=5)
    return min(clock(*tensors).results), answers


def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in zip(found, expected, strict=True)]
    return all(
        np.allclose(a, b, rtol=0, atol=TOLERANCE * np.nanmax(np.abs(b), initial=0), equal_nan=True)
        for a, b in pairs
    )
