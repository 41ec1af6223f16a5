"""An OpenVINO model whose weights are packed: written and read with numpy alone."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from pareflow.compiler import packing

FILE = "model.packed"
_KINDS = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "i64": "<i8", "i32": "<i4", "i16": "<i2", "i8": "i1"}
"""Element types as numpy has them; all others are taken byte by byte."""


def write(xml: Path, path: Path) -> None:
    """Pack the model `xml` and the weights beside it."""
    weights = xml.with_suffix(".bin").read_bytes()
    arrays, position = dict[str, np.ndarray](), 0
    for offset, size, kind in _constants(xml):
        if offset >= position:
            arrays[f"{position} gap"] = np.frombuffer(weights, np.uint8, offset - position, position)
            count = size // np.dtype(kind).itemsize
            arrays[f"{offset}"] = np.frombuffer(weights, kind, count, offset)
            position = offset + size
    arrays[f"{position} gap"] = np.frombuffer(weights, np.uint8, offset=position)
    path.write_bytes(packing.pack(arrays, xml.read_bytes()))


def read(path: Path) -> tuple[bytes, bytes]:
    """The model's XML, and its weights."""
    arrays, xml = packing.unpack(path.read_bytes())
    return xml, b"".join(array.tobytes() for array in arrays.values())


def _constants(xml: Path) -> list[tuple[int, int, str]]:
    """Offset, size in bytes, and kind of each constant, in the order of the file."""
    layers = ElementTree.parse(xml).getroot().iter("data")
    found = [(layer.attrib, _KINDS.get(layer.get("element_type", ""), "u1")) for layer in layers]
    return sorted({(int(a["offset"]), int(a["size"]), kind) for a, kind in found if "offset" in a})
