"""Calibration samples as NNCF takes them."""

from typing import TYPE_CHECKING

from pareflow.model.quantization.calibration import check_inputs_varied, count
from pareflow.network import openvino_ports
from pareflow.ports import pieces
from pareflow.workload import Arrays, LoadedWorkload

if TYPE_CHECKING:
    import nncf
    import openvino


def dataset(model: "openvino.Model", workload: LoadedWorkload, asked: int | None) -> "nncf.Dataset":
    """One feed per calibration sample, of the model's inputs; or per batch of the size that it is fixed to.

    Raises: UnsuitableError.
    """
    import nncf

    inputs = {name for port in model.inputs for name in port.names}
    size = openvino_ports(model.inputs).batch_size or 1
    batches = workload.feeds("calibration", size, count(workload, asked))
    feeds = [piece for batch in batches for piece in pieces(batch, size)]
    check_inputs_varied(feeds)

    def taken(feed: Arrays) -> Arrays:
        return {name: array for name, array in feed.items() if name in inputs}

    return nncf.Dataset(feeds, taken)
