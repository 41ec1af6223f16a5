"""The environment that a measurement belongs to."""

import platform

from pareflow.catalog import installed_version
from pareflow.hardware import probe
from pareflow.measurement import Environment

RUNTIMES = ("numpy", "onnxruntime", "openvino", "torch")


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
    )
