"""Pickles in a package: read without being run, and refused if they name more than a network is made of.

A pickle calls what it names, so that one from a registry runs whatever its writer chose. Packages hold ONNX
graphs, OpenVINO's IR and other formats that run nothing; only a torch module is kept as a pickle, since its
classes are its structure. Its opcodes are read here, and never executed, before torch opens it. What
`torch_compile`, `tvm` and `tensorrt` compile is native code: it is no pickle, and runs as it is, as the
package's own Python does. There the digests of what was registered are all that is checked, and of engines
that `tensorrt` builds later, for another GPU, not even these.
"""

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from pareflow.errors import InputError

_NAMES = re.compile(
    r"__builtin__ set|collections OrderedDict"
    r"|torch (\w+Storage|Size|device|b?float\d*|u?int\d+|bool|strided|contiguous_format|channels_last)"
    r"|torch\._utils _rebuild_(parameter|tensor_v2)"
    r"|torch\.nn\.modules\.\w+ [A-Z]\w*|torch\.nn\.parameter (Parameter|Buffer)"
    r"|torch\._C\._nn \w+|torch\.nn\.functional (relu6?|gelu|silu|mish|elu|leaky_relu|softmax|log_softmax)"
    r"|(transformers\.(activations|models\.[\w.]+)|torchvision\.models\.[\w.]+) [A-Z]\w*"
    r"|pareflow\.(huggingface|model|graph_module|graph_operators|torch_network)[\w.]* [A-Z]\w*"
    r"|pareflow_workload_\w+(\.\w+)* \w+"  # the package's own code, which runs in any case
)
"""Modules and what they define, as a pickle names them: tensors, layers, and the classes of networks."""
_CALLS_BY_COMPUTED_NAME = {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}
_OPENED = "network.pt"
"""What torch opens, as `pareflow.network` names it."""


def check(artifact: Path) -> None:
    """Raises: InputError for a pickle in the folder that names what no network is made of, and where torch
    might open another one than is read here."""
    for path in sorted(artifact.rglob("*")):
        if path.is_file():
            if path.name == _OPENED and not _is_plain(path):
                raise _refused(path, "it is no archive with one pickle, as torch writes them")
            for content in _pickles(path):
                _check(path, content)


def _is_plain(path: Path) -> bool:
    """Whether torch finds one pickle in a file, and the same one.

    What does not begin as an archive it opens in older forms, names it compares in any case, and an archive
    behind something else it reads otherwise.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries, comment = archive.infolist(), archive.comment
    except zipfile.BadZipFile:
        return False
    names = [entry.filename.lower() for entry in entries]
    pickles = [name for name in names if name.endswith(".pkl")]
    return (
        len(set(names)) == len(names)
        and len(pickles) == 1
        and re.fullmatch(r"[^/]+/data\.pkl", pickles[0]) is not None
        and min(entry.header_offset for entry in entries) == 0
        and not comment
    )


def _pickles(path: Path) -> Iterator[bytes]:
    """Every pickle of a file: the file itself, or those in an archive as torch writes them."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".pkl"):
                    yield archive.read(name)
    else:
        with path.open("rb") as file:
            if re.match(rb"\x80[\x02-\x05]", file.read(2)):
                yield path.read_bytes()


def _check(path: Path, content: bytes) -> None:
    try:
        named = [_named(operation.name, argument) for operation, argument, _ in pickletools.genops(content)]
    except Exception as error:  # whatever cannot be read is not opened
        raise _refused(path, f"it holds a pickle that cannot be read ({error})") from error
    foreign = sorted({name for name in named if name is not None and not _NAMES.fullmatch(name)})
    if foreign:
        raise _refused(path, f"it would run {', '.join(foreign[:3])}")


def _named(operation: str, argument: object) -> str | None:
    """What an opcode would import: `MODULE NAME`."""
    if operation in _CALLS_BY_COMPUTED_NAME:
        return f"a computed name ({operation})"
    return str(argument) if operation == "GLOBAL" else None


def _refused(path: Path, found: str) -> InputError:
    return InputError(
        "a pickle of a registered model must name nothing but tensors, layers and the classes of networks",
        f"{path.name}: {found}",
        "Do not open it; find out who wrote that artifact, and register the model again",
    )
