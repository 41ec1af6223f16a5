"""Weights of four bits by NNCF, for OpenVINO."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.quantization.calibration import Samples
from pareflow.model.quantization.floats import check_openvino_floats
from pareflow.model.quantization.nncf_calibration import dataset
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import openvino


class NncfInt4(Technique):
    """Store the weights of matrix products and embeddings in four bits, one scale per group of them.

    Size; time is that of OpenVINO's `precision`.
    Where `group_size` does not divide a layer's inputs, the largest smaller group that does is taken.
    Source: NNCF `compress_weights`; AWQ: Lin et al., 2023, arXiv:2306.00978, section 3.2; GPTQ: Frantar et
    al., 2022, arXiv:2210.17323, section 3.
    """

    name: ClassVar[str] = "nncf_int4"
    form: ClassVar[Form] = "openvino"
    requires: ClassVar[tuple[str, ...]] = ("nncf", "openvino")

    method: Literal["rtn", "awq", "gptq", "scale_estimation"] = Field(
        default="rtn",
        description="round to nearest, activation-aware, by second order, or with scales fitted to outputs",
    )
    group_size: Literal[16, 32, 64, 128] = Field(default=64, description="weights that share a scale")
    symmetric: bool = Field(default=False, description="no offset per group")
    samples: Samples = None

    def apply(self, network: "openvino.Model", workload: LoadedWorkload) -> "openvino.Model":
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

        check_openvino_floats(network, self.name)
        modes = nncf.CompressWeightsMode
        compressed: openvino.Model = nncf.compress_weights(
            network.clone(),
            mode=modes.INT4_SYM if self.symmetric else modes.INT4_ASYM,
            group_size=self.group_size,
            ratio=1.0,
            all_layers=True,
            dataset=None if self.method == "rtn" else dataset(network, workload, self.samples),
            advanced_parameters=AdvancedCompressionParameters(
                group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=2
            ),
            **({} if self.method == "rtn" else {self.method: True}),
        )
        stored = {node.get_element_type().to_string() for node in compressed.get_ops()}
        if not stored & {"u4", "i4"}:
            raise UnsuitableError(
                "the model must hold a product with a constant matrix",
                "no weight was stored in four bits",
                "Use nncf_int8, which quantizes convolutions",
            )
        return compressed
