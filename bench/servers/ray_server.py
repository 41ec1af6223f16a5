"""Ray Serve with its own batching around a session: GRAPH PORT MAX_BATCH REPLICAS."""

import sys
import time
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve
from starlette.requests import Request

graph, port, most, replicas = sys.argv[1:]


@serve.deployment(num_replicas=int(replicas), max_ongoing_requests=64)
class Model:
    """One request is one sample: its arrays by name, as lists."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        nodes = self.session.get_inputs()
        self.types = {node.name: np.int64 if "int64" in node.type else np.float32 for node in nodes}

    @serve.batch(max_batch_size=int(most), batch_wait_timeout_s=0.005)  # type: ignore[untyped-decorator]
    async def predict(self, requests: list[dict[str, np.ndarray]]) -> list[list[float]]:
        feeds = {name: np.concatenate([one[name] for one in requests]) for name in requests[0]}
        return [list(map(float, row)) for row in self.session.run(None, feeds)[0]]

    async def __call__(self, request: Request) -> dict[str, Any]:
        given = await request.json()
        feeds = {name: np.asarray(values, dtype=self.types[name]) for name, values in given.items()}
        return {"output": await self.predict(feeds)}


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    application = Model.bind()  # type: ignore[attr-defined]
    serve.run(application, route_prefix="/predict")
    while True:
        time.sleep(60)
