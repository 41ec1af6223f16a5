"""LitServe with its own batching around a session: GRAPH PORT MAX_BATCH WORKERS."""

import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime

graph, port, most, workers = sys.argv[1:]


class Api(litserve.LitAPI):  # type: ignore[misc]
    """One request is one sample: its arrays by name, as lists."""

    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        nodes = self.session.get_inputs()
        self.types = {node.name: np.int64 if "int64" in node.type else np.float32 for node in nodes}

    def decode_request(self, request: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.asarray(values, dtype=self.types[name]) for name, values in request.items()}

    def batch(self, inputs: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}

    def predict(self, feeds: dict[str, np.ndarray]) -> np.ndarray:
        found: np.ndarray = self.session.run(None, feeds)[0]
        return found

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"output": output.tolist()}


if __name__ == "__main__":
    api = Api(max_batch_size=int(most), batch_timeout=0.005)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=int(workers))
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="error")
