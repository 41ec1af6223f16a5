"""The cheapest classifier of texts: the weights of its tokens and pairs of tokens, looked up and summed."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

PAIRS = 2**15
"""Buckets that pairs of neighbouring tokens share."""
TOKENS = 2**15
"""At least the vocabulary."""
FACTOR = 31


def train(ids: list[np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The table, shape (tokens and pairs, classes + 1), and the bias, of texts as token ids.

    Logistic regression on counts times rarity, each text scaled to length one; a token held twice adds to
    the length as two. The last column holds the square of each rarity.
    """
    rows = np.repeat(np.arange(len(ids)), [2 * len(row) - 1 for row in ids])
    columns = np.concatenate([np.concatenate([row, TOKENS + pairs(row)]) for row in ids])
    counts = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(ids), TOKENS + PAIRS))
    rarity = np.log((1 + len(ids)) / (1 + np.asarray((counts > 0).sum(axis=0)).ravel())) + 1
    lengths = np.sqrt(counts @ rarity**2)
    scaled = sparse.diags(1 / lengths) @ counts @ sparse.diags(rarity)
    fitted = LogisticRegression(C=20, max_iter=60, tol=1e-3).fit(scaled, labels)
    table = np.column_stack([fitted.coef_.T * rarity[:, None], rarity**2])
    return table.astype(np.float32), fitted.intercept_.astype(np.float32)


def pairs(ids: np.ndarray) -> np.ndarray:
    return np.asarray((ids[:-1] * FACTOR + ids[1:]) % PAIRS)


def write(table: np.ndarray, bias: np.ndarray, path: Path) -> None:
    """Token ids and their mask, (batch, length), to `logits` (batch, classes)."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "table": table,
        "bias": bias,
        "factor": np.array(FACTOR, np.int64),
        "modulus": np.array(PAIRS, np.int64),
        "tokens": np.array(TOKENS, np.int64),
        "from_0": np.array([0], np.int64),
        "from_1": np.array([1], np.int64),
        "to_last": np.array([-1], np.int64),
        "to_end": np.array([2**31], np.int64),
        "axis": np.array([1], np.int64),
        "widths": np.array([len(bias), 1], np.int64),
    }
    steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
        ("Slice", ["input_ids", "from_0", "to_last", "axis"], ["first"], {}),
        ("Slice", ["input_ids", "from_1", "to_end", "axis"], ["second"], {}),
        ("Slice", ["attention_mask", "from_1", "to_end", "axis"], ["both"], {}),
        ("Mul", ["first", "factor"], ["multiplied"], {}),
        ("Add", ["multiplied", "second"], ["summed"], {}),
        ("Mod", ["summed", "modulus"], ["pair"], {}),
        ("Add", ["pair", "tokens"], ["placed"], {}),
        ("Concat", ["input_ids", "placed"], ["rows"], {"axis": 1}),
        ("Concat", ["attention_mask", "both"], ["present"], {"axis": 1}),
        ("Cast", ["present"], ["weights"], {"to": TensorProto.FLOAT}),
        ("Unsqueeze", ["weights", "axis"], ["row"], {}),
        ("Gather", ["table", "rows"], ["found"], {}),
        ("MatMul", ["row", "found"], ["sums"], {}),
        ("Squeeze", ["sums", "axis"], ["sum"], {}),
        ("Split", ["sum", "widths"], ["scores", "squares"], {"axis": 1}),
        ("Sqrt", ["squares"], ["lengths"], {}),
        ("Div", ["scores", "lengths"], ["scaled"], {}),
        ("Add", ["scaled", "bias"], ["logits"], {}),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, given, made, **attributes) for kind, given, made, attributes in steps],
        "token_classifier",
        inputs,
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, path)
