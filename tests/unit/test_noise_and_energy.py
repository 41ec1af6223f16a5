"""What else runs on the machine, and the joules it counts."""

import sys
from pathlib import Path

import pytest

from pareflow.errors import BusyMachineError
from pareflow.hardware import noise
from pareflow.hardware.energy import device_joules, processor_joules
from pareflow.hardware.noise import Noise, await_quiet, watch

QUIET = Noise(share=1.0, spread=1.1, steal=0.0, busy_cores=0.1)


def test_this_machine_can_be_watched() -> None:
    seen = watch()
    assert 0 < seen.share <= 1
    assert seen.spread >= 1
    assert seen.busy_cores is None or seen.busy_cores >= 0


@pytest.mark.parametrize(
    ("seen", "unfit", "words"),
    [
        (QUIET, False, ""),
        (Noise(1.0, 1.1, None, None), False, ""),
        (Noise(1.0, 1.1, 0.0, 1.5), False, "others keep 1.5 of 2 cores busy"),
        (Noise(0.9, 1.1, 0.0, 0.1), False, "a busy thread gets 90% of a core"),
        (Noise(1.0, 2.0, 0.0, 0.1), False, "a reference kernel's p90 is 2.0 times its p10"),
        (Noise(1.0, 1.1, 0.1, 0.1), False, "the host takes 10% of the time"),
        (Noise(0.3, 1.1, 0.0, 0.1), True, "a busy thread gets 30% of a core"),
        (Noise(1.0, 6.0, 0.0, 0.1), True, "a reference kernel's p90 is 6.0 times its p10"),
        (Noise(1.0, 1.1, 0.6, 0.1), True, "the host takes 60% of the time"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_disturbs_is_told_and_too_much_is_unfit(seen: Noise, unfit: bool, words: str) -> None:
    assert (seen.unfit, seen.words(threads=1, cores=2)) == (unfit, words)


def test_a_busy_machine_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfit twice, then quiet: two pauses."""
    seen = iter([Noise(0.3, 1.1, 0.0, 2.0), Noise(0.2, 1.1, 0.0, 2.0), QUIET])
    pauses: list[float] = []
    monkeypatch.setattr(noise, "watch", lambda: next(seen))
    monkeypatch.setattr("time.sleep", pauses.append)
    assert await_quiet(60) == QUIET
    assert pauses == [noise.PAUSE_S] * 2


def test_a_machine_that_stays_busy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "watch", lambda: Noise(0.3, 1.1, 0.0, 2.0))
    with pytest.raises(
        BusyMachineError, match=r"quiet enough to time on, but .* gets 30% of a core"
    ) as caught:
        await_quiet(0)
    assert caught.value.exit_code == 4


def package(root: Path, name: str, joules: float, zone: str = "package-0") -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (folder / "max_energy_range_uj").write_text("100000000\n")
    (folder / "name").write_text(f"{zone}\n")
    return folder


def test_joules_are_summed_over_packages_and_unwrapped(tmp_path: Path) -> None:
    """3 J and 2 J; then the first wraps around at 100 J: from 98 to 1 is 3 J. Cores are in their package."""
    package(tmp_path, "intel-rapl:0", 95)
    package(tmp_path, "intel-rapl:1", 10)
    package(tmp_path, "intel-rapl:0:0", 50)
    joules = processor_joules(tmp_path)
    assert joules is not None
    package(tmp_path, "intel-rapl:0", 98)
    package(tmp_path, "intel-rapl:1", 12)
    package(tmp_path, "intel-rapl:0:0", 90)
    assert joules() == pytest.approx(5)
    package(tmp_path, "intel-rapl:0", 1)
    assert joules() == pytest.approx(8)


def test_what_holds_the_whole_machine_is_not_counted_beside_its_processor(tmp_path: Path) -> None:
    """`psys` of client machines: its joules are the package's too."""
    package(tmp_path, "intel-rapl:0", 10)
    package(tmp_path, "intel-rapl:1", 30, "psys")
    joules = processor_joules(tmp_path)
    assert joules is not None
    package(tmp_path, "intel-rapl:0", 12)
    package(tmp_path, "intel-rapl:1", 39, "psys")
    assert joules() == pytest.approx(2)


def test_where_nothing_counts_there_is_no_counter(tmp_path: Path) -> None:
    assert processor_joules(tmp_path) is None


class Nvml:
    """NVML of devices of these names along the bus: the first has used 1 J, the second 2 J, and so on."""

    class NVMLError(Exception):
        """There is no such device."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def nvmlInit(self) -> None:
        """Nothing is to be opened."""

    def nvmlDeviceGetCount(self) -> int:
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index >= len(self.names):
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return self.nvmlDeviceGetHandleByIndex(int(uuid.removeprefix("GPU-")))

    def nvmlDeviceGetName(self, device: int) -> str:
        return self.names[device]

    def nvmlDeviceGetTotalEnergyConsumption(self, device: int) -> int:
        return 1000 * (device + 1)


@pytest.mark.parametrize(
    ("names", "environment", "expected"),
    [
        (["T4"], {}, 1.0),
        (["T4", "A100"], {}, None),
        (["T4", "A100"], {"CUDA_VISIBLE_DEVICES": "1"}, None),
        (["T4", "A100"], {"CUDA_VISIBLE_DEVICES": "1,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 2.0),
        (["T4", "A100"], {"CUDA_VISIBLE_DEVICES": "GPU-1"}, 2.0),
        (["T4", "T4"], {"CUDA_VISIBLE_DEVICES": "1"}, 2.0),
        (["T4", "T4"], {"CUDA_VISIBLE_DEVICES": "2"}, None),
    ],
    ids=["one", "unlike", "unlike, second", "along the bus", "by name", "alike", "absent"],
)
def test_joules_are_of_the_device_that_cuda_calls_its_first_or_unknown(
    names: list[str],
    environment: dict[str, str],
    expected: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """CUDA counts from the fastest device on, and NVML along the bus."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(*names))
    joules = device_joules()
    assert (joules and joules()) == expected


@pytest.mark.cuda
def test_a_device_counts_joules() -> None:
    joules = device_joules()
    assert joules is not None
    assert joules() > 0
