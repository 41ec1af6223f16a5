"""Whether a variant fits a device that is not at hand: what is known of both, compared.

What is computed here is an estimate and says so. It can rule a variant out, where even the least that it
needs is too much; it never stands in for a measurement on the device (laws 3 and 4).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pareflow.hardware.device_profile import DeviceProfile, Precision

Decision = Literal["fits", "does not fit", "unknown"]


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """What one request costs, computed from the graph; None where it could not be.

    `activation_bytes` is a lower bound of what lies in memory at once besides the weights; `operations`
    counts multiplications and additions of matrix operators by the precision they run in.
    """

    weight_bytes: int
    activation_bytes: int | None
    operations: Mapping[Precision, int]
    operators: tuple[str, ...]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "NetworkFacts":
        return cls(**{**document, "operators": tuple(document["operators"])})

    def narrowest(self, size_mib: float) -> "NetworkFacts":
        """The least of any network of this structure in files of this size: every number a byte.

        For executables whose numbers are not those of the graph that these facts are of.
        """
        activations = None if self.activation_bytes is None else self.activation_bytes // 4
        weights = min(self.weight_bytes, int(size_mib * 2**20))
        return NetworkFacts(weights, activations, {"int8": sum(self.operations.values())}, self.operators)


@dataclass(frozen=True, slots=True)
class Need:
    """One thing that a variant needs, and what the device has; `limit` is None where it bounds nothing."""

    name: str
    unit: str
    needs: float | None
    limit: float | None
    estimated: bool
    words: str

    @property
    def decision(self) -> Decision:
        if self.limit is None:
            return "fits"
        if self.needs is None:
            return "unknown"
        return "fits" if self.needs <= self.limit else "does not fit"


@dataclass(frozen=True, slots=True)
class Fit:
    """Every need of one variant on one device.

    `units` is how many units of the device run it, each a request of its own. `confined` is what it did here
    with one core and no more memory than the device has: the nearest thing.
    """

    device: str
    runs_by: str
    needs: tuple[Need, ...]
    units: int = 1
    confined: Mapping[str, Any] | None = None

    @property
    def decision(self) -> Decision:
        """Does not fit if any need does not, else unknown if any is."""
        found = {need.decision for need in self.needs}
        return "does not fit" if "does not fit" in found else "unknown" if "unknown" in found else "fits"

    @property
    def excess(self) -> str:
        """Every need that the device does not meet, in words; empty where it meets all."""
        return "; ".join(need.words for need in self.needs if need.decision == "does not fit")

    @property
    def missed(self) -> str:
        """What keeps it from fitting, and on which device; empty where it fits."""
        if self.decision == "fits":
            return ""
        return f"{self.device}: {self.excess or 'what it needs there is not known'}"

    def needed(self, name: str) -> float | None:
        """How much it needs of one thing; None where that is unknown or not asked."""
        return next((need.needs for need in self.needs if need.name == name), None)

    def to_json(self) -> dict[str, Any]:
        needs = [{**asdict(need), "decision": need.decision} for need in self.needs]
        return {
            "device": self.device,
            "runs_by": self.runs_by,
            "decision": self.decision,
            "needs": needs,
            "confined": None if self.confined is None else dict(self.confined),
        }


def fits(size_mib: float, facts: NetworkFacts | None, profile: DeviceProfile, backend: str) -> Fit:
    """What a variant of `size_mib` on disk needs of the device; without facts only its size is judged.

    `least_ms` and `energy` bound nothing by themselves: they are what the SLA's clauses are compared with.
    """
    units = profile.units_of(backend)
    runs_by = "; ".join(
        f"{u.name}: {what}" for u in units for name, what in u.backends.items() if name == backend
    )
    needs = [_runtime(profile, backend), _storage(size_mib, profile), _memory(facts, profile)]
    if profile.operators is not None:
        needs.append(_operators(facts, profile.operators))
    return Fit(profile.name, runs_by, (*needs, *_rate(facts, profile, backend)), len(units))


def _runtime(profile: DeviceProfile, backend: str) -> Need:
    words = does_not_run(profile, backend) or f"the device runs what {backend} compiles"
    absent = int(backend not in profile.backends)
    return Need("runtime", "missing", absent, 0, estimated=False, words=words)


def does_not_run(profile: DeviceProfile, backend: str) -> str | None:
    """Why a backend's executables are of no use on a device, or None."""
    if backend in profile.backends:
        return None
    return f"the device does not run it: {profile.name} runs {', '.join(profile.backends)}"


def _storage(size_mib: float, profile: DeviceProfile) -> Need:
    words = f"its files take {size_mib:.3g} MiB of the device's {profile.storage_mib:g} MiB of storage"
    return Need("storage", "MiB", size_mib, profile.storage_mib, estimated=False, words=words)


def _memory(facts: NetworkFacts | None, profile: DeviceProfile) -> Need:
    """Activations, and weights where they are not read from storage: the least that any runtime needs."""
    if facts is None or facts.activation_bytes is None:
        words = "what it needs of memory is unknown"
        return Need("memory", "MiB", None, profile.memory_mib, estimated=True, words=words)
    held = 0 if profile.weights_in_storage else facts.weight_bytes
    least = (facts.activation_bytes + held) / 2**20
    parts = "activations" if profile.weights_in_storage else "activations and weights"
    words = f"its {parts} need at least {least:.3g} MiB of {profile.memory_mib:g} MiB of memory (estimated)"
    return Need("memory", "MiB", least, profile.memory_mib, estimated=True, words=words)


def _operators(facts: NetworkFacts | None, known: tuple[str, ...]) -> Need:
    if facts is None:
        return Need("operators", "missing", None, 0, estimated=False, words="its operators are unknown")
    absent = [name for name in facts.operators if name not in known]
    words = (
        f"the device lacks its operators {', '.join(absent)}" if absent else "the device has its operators"
    )
    return Need("operators", "missing", len(absent), 0, estimated=False, words=words)


def _rate(facts: NetworkFacts | None, profile: DeviceProfile, backend: str) -> list[Need]:
    least = None if facts is None else least_ms(facts, profile, backend)
    time = "unknown" if least is None else f"at least {least:.3g} ms a request (estimated from peak rates)"
    found = [Need("least_ms", "ms", least, None, estimated=True, words=time)]
    if profile.power_w is not None:
        words = f"{profile.power_w:g} W at most (estimated: all that the device draws)"
        found.append(Need("power", "W", profile.power_w, None, estimated=True, words=words))
    if least is not None and profile.power_w is not None:
        joules = profile.power_w * least / 1000
        words = f"about {joules:.2g} J a request (estimated: {profile.power_w:g} W for its least time)"
        found.append(Need("energy", "J", joules, None, estimated=True, words=words))
    return found


def least_ms(facts: NetworkFacts, profile: DeviceProfile, backend: str) -> float | None:
    """The time that no request can pass below: its arithmetic at the peak rate, or its weights from memory.

    By the fastest unit that runs this backend; None where no unit tells a rate for one of its precisions.
    Source: the two ceilings of Williams, Waterman and Patterson, 2009, "Roofline", CACM 52(4).
    """
    times = []
    for unit in profile.units_of(backend):
        rates = {precision: _gops(unit.gops, precision) for precision in facts.operations}
        if None not in rates.values():
            times.append(sum(n / (rates[p] or 1) / 1e6 for p, n in facts.operations.items()))
    if not times:
        return None
    return max(min(times), facts.weight_bytes / profile.memory_gb_per_s / 1e6)


def least_slower(profile: DeviceProfile, backend: str, gflops: float, copy_gb_per_s: float) -> float | None:
    """How many times longer than a machine of these rates the device takes at least, in fp32; may be below 1.

    The worse of its two ceilings against the machine's: arithmetic by its fastest unit, and memory. The
    profile's are maxima, seldom reached. None where no unit that runs this backend tells a rate.
    """
    rates = [_gops(unit.gops, "float32") for unit in profile.units_of(backend)]
    fastest = max((rate for rate in rates if rate is not None), default=None)
    return None if fastest is None else max(gflops / fastest, copy_gb_per_s / profile.memory_gb_per_s)


def _gops(gops: Mapping[Precision, float], precision: Precision) -> float | None:
    """The unit's rate; numbers of 16 bits that it does not know are computed in the next wider ones."""
    if precision in ("float16", "bfloat16") and precision not in gops:
        return gops.get("float32")
    return gops.get(precision)
