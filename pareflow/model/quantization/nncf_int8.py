"""Integers of eight bits by NNCF, for OpenVINO."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pareflow.model.quantization.calibration import Samples
from pareflow.model.quantization.floats import check_openvino_floats
from pareflow.model.quantization.nncf_calibration import dataset
from pareflow.model.technique import Technique
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import openvino


class NncfInt8(Technique):
    """Post-training quantization of an OpenVINO model, with bias correction; SmoothQuant for transformers.

    Source: NNCF `quantize`; SmoothQuant: Xiao et al., 2023, arXiv:2211.10438. `model_type: transformer` is
    needed for transformers.
    """

    name: ClassVar[str] = "nncf_int8"
    form: ClassVar[Form] = "openvino"
    requires: ClassVar[tuple[str, ...]] = ("nncf", "openvino")

    model_type: Literal["general", "transformer"] = Field(
        default="general", description="what the network is"
    )
    samples: Samples = None

    def apply(self, network: "openvino.Model", workload: LoadedWorkload) -> "openvino.Model":
        import nncf

        check_openvino_floats(network, self.name)
        samples = dataset(network, workload, self.samples)
        quantized: openvino.Model = nncf.quantize(
            network.clone(),
            samples,
            subset_size=samples.get_length(),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if self.model_type == "transformer" else None,
        )
        return quantized
