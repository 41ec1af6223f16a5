"""A workload of plain files: an ONNX graph and arrays. No torch, no code."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pareflow import graph_file, graph_surgery, ports
from pareflow.errors import InputError, WorkloadError
from pareflow.ports import Port, Ports
from pareflow.variant import Step
from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    import onnx

Sizes = tuple[int | None, ...] | None
"""Of an input or output, as `Port.shape`."""


class OnnxFile(Workload):
    """`workload: {onnx: {model: …, arrays: …}}`: a network, and the rows of arrays in a `.npz`.

    Paths start from the folder of the pipeline YAML. A graph of a fixed batch answers others piece by piece.
    """

    name: ClassVar[str] = "onnx"
    serving_requires: ClassVar[tuple[str, ...]] = ()
    made_of: ClassVar[tuple[ModuleType, ...]] = (graph_file, graph_surgery, ports)

    model: str = Field(description="the original: an ONNX file")
    arrays: str = Field(description="a .npz file with the data")
    input_name: str | None = Field(default=None, description="the input that is given; default: the only one")
    samples: str | dict[str, str] = Field(
        default="samples",
        description="the array of inputs, one per row; where there are several inputs, the array of each",
    )
    targets: str | None = Field(
        default="targets",
        description="the array of targets, with `predicts: class` positions in the output; null where the "
        "data have no labels",
    )
    scale: float = Field(default=1.0, gt=0, description="an input is (sample - zero_point) * scale")
    zero_point: float = Field(default=0.0, description="the sample that stands for zero")
    zeros: dict[str, tuple[int, ...]] = Field(
        default_factory=dict,
        description="inputs that are zero for each sample, such as first states, and their shape per sample",
    )
    zero_kinds: dict[str, str] = Field(
        default_factory=dict, description="what numbers these are, such as int64; default: as the graph says"
    )
    constants: dict[str, float | int | bool | list[float | int | bool]] = Field(
        default_factory=dict, description="inputs that never change, and their values"
    )
    batch_axes: dict[str, int] = Field(
        default_factory=dict, description="inputs and outputs whose batch is not their first axis, and which"
    )
    output: str | None = Field(default=None, description="the output that predicts; default: the first")
    training: int = Field(default=1, ge=1, description="how many samples techniques may train on")
    calibration: int = Field(default=100, ge=1, description="how many samples calibrate")
    search: int = Field(default=200, ge=1, description="how many samples rank candidates; the others decide")
    predicts: Literal["class", "value"] = Field(
        default="class",
        description="the position of the largest of two outputs at least, or the outputs themselves: "
        "of one per sample that number",
    )
    variants: dict[str, str] = Field(
        default_factory=dict,
        description="ready-made ONNX files by name, for the technique `given`: with the inputs and outputs "
        "that the file of `model` has, or without those of `constants`",
    )

    @model_validator(mode="after")
    def _one_way_to_name_inputs(self) -> Self:
        if isinstance(self.samples, dict) and self.input_name is not None:
            raise ValueError("one of `input_name` and a mapping of `samples` must name the inputs, not both")
        if isinstance(self.samples, dict) and (self.scale, self.zero_point) != (1.0, 0.0):
            raise ValueError("`scale` and `zero_point` must go with one input")
        return self

    def data(self) -> Splits:
        """The rows, shuffled by the seed and cut. Raises: WorkloadError where arrays or rows are missing."""
        stored = self._stored()
        names = [self.samples] if isinstance(self.samples, str) else list(self.samples.values())
        missing = [name for name in (*names, self.targets) if name is not None and name not in stored]
        if missing:
            raise WorkloadError(
                f"{self.arrays} must hold the arrays that the YAML names",
                f"it lacks {', '.join(missing)}, and holds {', '.join(stored)}",
                "Mend `samples` or `targets` (`targets: null` where there are no labels)",
            )
        targets = None if self.targets is None else self._one_each(stored[self.targets])
        rows = Split(self._rows(stored), targets)
        verdict = len(rows.samples) - self.training - self.calibration - self.search
        if verdict < 1:
            raise WorkloadError(
                f"{self.training} training, {self.calibration} calibration, {self.search} search samples "
                "must leave some that decide",
                f"{self.arrays} has {len(rows.samples)} rows",
                "Lower `training`, `calibration` or `search`",
            )
        return Splits.cut(
            rows, calibration=self.calibration, search=self.search, verdict=verdict, seed=self.seed
        )

    def _stored(self) -> Mapping[str, np.ndarray]:
        path = self._existing(self.arrays)
        try:
            with np.load(path) as stored:
                return {name: stored[name] for name in stored.files}
        except Exception as error:
            raise WorkloadError(
                f"{path} must be a .npz file of plain arrays",
                f"numpy says: {error}",
                "Write it by `numpy.savez`",
            ) from error

    def _rows(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        """One row per sample: of several inputs a record each. Raises: WorkloadError."""
        if isinstance(self.samples, str):
            return self._in_32_bits(stored[self.samples])
        arrays = {port: self._in_32_bits(stored[name], port) for port, name in self.samples.items()}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise WorkloadError(
                "the arrays of all inputs must have one row per sample",
                f"they have {lengths}",
                "Mend `arrays`",
            )
        kinds = [(port, array.dtype, array.shape[1:]) for port, array in arrays.items()]
        rows = np.empty(min(lengths.values()), kinds)
        for port, array in arrays.items():
            rows[port] = array
        return rows

    def _in_32_bits(self, array: np.ndarray, port: str | None = None) -> np.ndarray:
        """The array of an input, or of the only one: float64 becomes float32 where it takes that."""
        if array.dtype != np.float64:
            return array
        kinds = {given.name: given.kind for given in self._ports.ports}
        return array.astype(np.float32) if kinds.get(port or self._only_input) == "float32" else array

    def network(self) -> "onnx.ModelProto":
        """The graph, its weights no inputs, its constants in it, and each port's batch first."""
        return self._arrange(graph_file.read(self._path(self.model)), self.constants, self.batch_axes)

    def arranged(self, network: "onnx.ModelProto") -> "onnx.ModelProto":
        """As `network()`, as far as the file is not yet: what it has folded is no input of it, and a port
        with the sizes of `network()` has its batch first."""
        given, wanted = _shapes(network), _shapes(self.network()) if self.batch_axes else {}
        constants = {port: value for port, value in self.constants.items() if port in given}
        axes = {
            port: axis
            for port, axis in self.batch_axes.items()
            if not _is_first(given.get(port), wanted[port], axis)
        }
        return self._arrange(network, constants, axes)

    def _arrange(
        self, network: "onnx.ModelProto", constants: Mapping[str, Any], axes: Mapping[str, int]
    ) -> "onnx.ModelProto":
        for port, value in constants.items():
            graph_surgery.constant(network, port, value)
        for port, axis in axes.items():
            graph_surgery.batch_first(network, port, axis)
        return network

    def check(self, example: Arrays) -> None:
        """Raises: WorkloadError where the graph cannot run here, or its inputs are not those it is given."""
        graph_file.check_runnable(self._path(self.model))
        try:
            self._ports.check(example, no_others=True)
        except InputError as error:
            raise WorkloadError(
                f"{self.model} takes {self._ports}, and must be given it", error.found, self._mend(example)
            ) from error
        self._check_tensors(self.network())
        shape = self._predicting().shape
        if shape is not None:
            self._check_classes(shape)

    def _mend(self, example: Arrays) -> str:
        """What to do about inputs that are not those of the graph."""
        try:
            Ports([replace(port, kind="") for port in self._ports.ports]).check(example, no_others=True)
        except InputError:
            return "Mend `samples`, `input_name`, `zeros`, `constants` or `batch_axes` in the YAML"
        wrong = [p for p in self._ports.ports if p.kind not in ("", example[p.name].dtype.name)]
        arrays = ", ".join(f"of `{port.name}` as {port.kind}" for port in wrong)
        return f"Save the array {arrays} (`array.astype(…)`), or mend `scale` or `zero_kinds` in the YAML"

    def check_labels(self, labels: np.ndarray) -> None:
        """Raises: WorkloadError where one is no position in the output: `predicts: class` gives no other."""
        if self.predicts != "class":
            return
        shape = self._predicting().shape
        classes = shape[-1] if shape else None
        wrong = [label for label in labels.ravel().tolist() if not _is_position(label, classes)]
        if wrong:
            raise WorkloadError(
                "with `predicts: class`, targets must be positions in the output: "
                + ("whole numbers from 0 on" if classes is None else f"0 to {classes - 1}"),
                f"{len(wrong)} of {labels.size} are not, the first is {wrong[0]!r}",
                "Number them in the output's order, as `np.searchsorted(model.classes_, y)` does; or, where "
                "the graph gives labels too, name that `output`, and set `predicts: value`",
            )

    def _predicting(self) -> Port:
        """The output that predicts. Raises: WorkloadError where there is none of its name."""
        outputs = {port.name: port for port in self._sides[1].ports}
        if self.output is not None and self.output not in outputs:
            raise WorkloadError(
                f"`output` must be one of {', '.join(outputs)}", f"it is `{self.output}`", "Mend the YAML"
            )
        return outputs[self.output or next(iter(outputs))]

    def _check_tensors(self, network: "onnx.ModelProto") -> None:
        """Raises: WorkloadError where an output is no tensor, as ZipMap's list of mappings is none."""
        for output in network.graph.output:
            kind = output.type.WhichOneof("value")
            if kind not in (None, "tensor_type"):
                raise WorkloadError(
                    f"every output of {self.model} must be a tensor",
                    f"`{output.name}` is a {kind.removesuffix('_type')}",
                    "Export it without it, or without ZipMap (skl2onnx: `options={'zipmap': False}`)",
                )

    @property
    def _ports(self) -> Ports:
        return self._sides[0]

    @cached_property
    def _sides(self) -> tuple[Ports, Ports]:
        """What the graph takes, and what it gives."""
        network = self.network()
        return graph_file.ports(network), graph_file.outputs(network)

    @cached_property
    def _only_input(self) -> str:
        """The one input that the samples are for. Raises: WorkloadError."""
        if self.input_name is not None:
            return self.input_name
        names = [port.name for port in self._ports.ports if port.name not in self.zeros]
        if len(names) != 1:
            raise WorkloadError(
                "the YAML must say which array each input is given",
                f"{self.model} takes {self._ports}",
                "Write `samples: {INPUT: ARRAY, …}`, and `zeros` or `constants` for those that have none",
            )
        return names[0]

    @cached_property
    def _zero_kinds(self) -> dict[str, str]:
        """Of each of `zeros`; float32 where the graph has no such input, which `check` tells."""
        asked = self.zeros.keys() - self.zero_kinds.keys()
        known = {port.name: port.kind for port in self._ports.ports} if asked else {}
        return {name: self.zero_kinds.get(name) or known.get(name) or "float32" for name in self.zeros}

    def preprocess(self, samples: Samples) -> Arrays:
        """`(samples - zero_point) * scale` in 32 bits; samples stay as they are where neither is set."""
        raw = np.asarray(samples)
        zeros = {n: np.zeros((len(raw), *sizes), self._zero_kinds[n]) for n, sizes in self.zeros.items()}
        if isinstance(self.samples, dict):
            return {name: np.ascontiguousarray(raw[name]) for name in self.samples} | zeros
        if (self.scale, self.zero_point) == (1.0, 0.0):
            return {self._only_input: raw} | zeros
        scaled = ((raw.astype(np.float32) - self.zero_point) * self.scale).astype(np.float32)
        return {self._only_input: scaled} | zeros

    def judged(self, outputs: Arrays) -> np.ndarray:
        """The output that predicts."""
        return next(iter(outputs.values())) if self.output is None else outputs[self.output]

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """What `predicts` says of the output. Raises: WorkloadError where it has no classes."""
        chosen = self.judged(outputs)
        self._check_classes(chosen.shape)
        predictions: np.ndarray = chosen.argmax(axis=-1) if self.predicts == "class" else chosen
        return self._one_each(predictions)

    def _one_each(self, values: np.ndarray) -> np.ndarray:
        """Where values are predicted: of one number per sample that number, not a row of one."""
        rows_of_one = self.predicts == "value" and values.ndim == 2 and values.shape[1] == 1
        return values[:, 0] if rows_of_one else values

    def _check_classes(self, shape: Sequence[int | None]) -> None:
        """Raises: WorkloadError where the largest of an output's last axis would be its only one."""
        few = len(shape) < 2 or (shape[-1] is not None and shape[-1] < 2)
        if self.predicts == "class" and few:
            shown = ", ".join("any" if size is None else str(size) for size in shape)
            raise WorkloadError(
                "`predicts: class` needs an output with two classes at least, along its last axis",
                f"the output has the shape ({shown})",
                "Name another `output`; set `predicts: value` where it holds labels or numbers; or write a "
                "workload.py whose `postprocess()` says from which probability on a sample is of class 1",
            )

    def sources(self) -> list[Path]:
        """The graph, and the weights beside it and beside the variants, whose own faults are told later."""
        path = self._path(self.model)
        found = [path, *graph_file.external_files(path)]
        for variant in self.given().values():
            with suppress(WorkloadError):
                found += graph_file.external_files(variant)
        return found

    def given(self) -> Mapping[str, Path]:
        return {name: self._existing(path) for name, path in self.variants.items()}

    def pack(self, folder: Path) -> Step:
        """Processing reads no file: what the graph says of its inputs is written down."""
        told: dict[str, object] = {"zero_kinds": self._zero_kinds}
        if isinstance(self.samples, str):
            told["input_name"] = self._only_input
        return self.model_copy(update=told).step

    def _path(self, path: str) -> Path:
        return self.folder / path

    def _existing(self, path: str) -> Path:
        found = self.folder / path
        if not found.is_file():
            raise WorkloadError(
                "every file of an `onnx` workload must exist",
                f"there is no {found}",
                "Paths start from the folder of the pipeline YAML",
            )
        return found


def _shapes(network: "onnx.ModelProto") -> dict[str, Sizes]:
    """Of each input and output, by name."""
    ports = (*graph_file.ports(network).ports, *graph_file.outputs(network).ports)
    return {port.name: port.shape for port in ports}


def _is_first(given: Sizes, wanted: Sizes, axis: int) -> bool:
    """Whether a port's batch is first, as `wanted`, and not at `axis`, where it is if sizes do not tell."""
    if wanted is None:
        return False
    batch, *others = wanted
    return given == wanted != (*others[:axis], batch, *others[axis:])


def _is_position(label: object, classes: int | None) -> bool:
    """Whether a label is one of so many positions, or of any number."""
    if not isinstance(label, int | float):
        return False
    return label // 1 == label >= 0 and (classes is None or label < classes)
