"""Integers of eight bits, the activations' scales found beforehand on calibration data."""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pareflow import graph_file, large_graphs
from pareflow.model.quantization.calibration import PRODUCTS, Samples, check_varied, feeds, layers
from pareflow.model.quantization.floats import check_floats
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import Arrays, LoadedWorkload

if TYPE_CHECKING:
    import onnx

Method = Literal["minmax", "entropy", "percentile"]
Operators = Literal["all", "products"]

_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


class StaticInt8(Technique):
    """Insert QuantizeLinear and DequantizeLinear around what computes: activations u8, weights s8.

    Source: Jacob et al., 2018, arXiv:1712.05877, section 2; calibration by entropy: Migacz, 2017, 8-bit
    Inference with TensorRT. ONNX Runtime's `quantize_static`. Activations are unsigned, since signed ones
    run slower than fp32 on x86.
    """

    name: ClassVar[str] = "static_int8"
    form: ClassVar[Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")

    method: Method = Field(default="minmax", description="how the range of an activation is chosen")
    per_channel: bool = Field(default=True, description="one scale per output channel of a weight")
    reduce_range: bool = Field(
        default=False, description="weights in 7 bits, where the processor adds products of bytes in 16 bits"
    )
    operators: Operators = Field(
        default="all",
        description="what is quantized: also sums, pools and the like, or only what multiplies by weights",
    )
    samples: Samples = None

    def apply(self, network: "onnx.ModelProto", workload: LoadedWorkload) -> "onnx.ModelProto":
        with tempfile.TemporaryDirectory() as folder:
            return Calibrated(network, workload, self, Path(folder)).quantized()


class Calibrated:
    """A graph that is prepared for quantization, and the ranges of its activations, in `folder`.

    Raises: UnsuitableError where nothing can be quantized, or the calibration samples do not do; ExportError
    where scales per channel are for a later opset, and the graph cannot be raised to it.
    """

    def __init__(
        self, network: "onnx.ModelProto", workload: LoadedWorkload, settings: StaticInt8, folder: Path
    ) -> None:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        check_floats(network, settings.name)
        layers(network)
        if settings.per_channel:
            network = graph_file.raised(network)
        names = ("plain", "optimized", "prepared")
        plain, optimized, self._path = (folder / f"{name}.onnx" for name in names)
        large_graphs.save(network, plain)
        beside = large_graphs.is_large(network)
        quant_pre_process(
            plain,
            optimized,
            skip_symbolic_shape=True,
            save_as_external_data=beside,
            all_tensors_to_one_file=True,
        )
        self.prepared = _named(onnx.load_model(optimized))
        large_graphs.save(self.prepared, self._path)
        self._feeds = feeds(workload, settings.samples, graph_file.ports(network))
        check_varied(self.prepared, self._feeds)
        self._settings, self._folder = settings, folder

    def quantized(self, floats: Sequence[str] = ()) -> "onnx.ModelProto":
        """The graph in int8, but for the layers named in `floats`. It is calibrated when first asked."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        with tempfile.TemporaryDirectory(dir=self._folder) as made:
            path = Path(made) / "quantized.onnx"
            quantize_static(
                self._path,
                path,
                Reader(self._feeds),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(PRODUCTS) if self._settings.operators == "products" else None,
                per_channel=self._settings.per_channel,
                reduce_range=self._settings.reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(floats),
                use_external_data_format=large_graphs.is_large(self.prepared),
                calibrate_method=CalibrationMethod[_METHODS[self._settings.method]],
                calibration_cache_path=self._folder / "ranges.json",
            )
            return onnx.load_model(path)


def _named(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The model with a name for each node, since layers are left out by name; in place."""
    taken = {node.name for node in model.graph.node}
    free = (name for name in map("unnamed_{}".format, itertools.count()) if name not in taken)
    for node in model.graph.node:
        node.name = node.name or next(free)
    return model


class Reader:
    """Feeds one by one, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, feeds: Sequence[Arrays]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Arrays | None:
        return next(self._feeds, None)
