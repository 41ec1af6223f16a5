"""A device, or why there is none."""

import pytest

from pareflow.hardware import accelerators
from pareflow.hardware.accelerators import NO_DEVICE, Device


@pytest.fixture(scope="session")
def cuda() -> Device:
    """The first CUDA device; without one the test is skipped, and says why."""
    found = accelerators.device()
    if found is None:
        pytest.skip(NO_DEVICE)
    return found
