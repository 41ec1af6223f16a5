"""A plain FastAPI route around a session, as anybody writes it first: GRAPH PORT."""

import sys
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI

graph, port = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
app = FastAPI()


@app.post("/predict")
def predict(request: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Arrays by name, as nested lists; FastAPI runs it in its pool of threads."""
    types = {node.name: np.int64 if "int64" in node.type else np.float32 for node in session.get_inputs()}
    feeds = {name: np.asarray(values, dtype=types[name]) for name, values in request.items()}
    names = [node.name for node in session.get_outputs()]
    return {name: array.tolist() for name, array in zip(names, session.run(names, feeds), strict=True)}


uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", http="httptools", loop="uvloop")
