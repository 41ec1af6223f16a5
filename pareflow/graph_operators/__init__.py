"""ONNX's operators in torch, as far as torch.export takes what they make.

An operator is a function of its inputs and attributes, by ONNX's own names: what it has no parameter for, it
does not know. What must be known before it runs (shapes, axes, bounds) is a numpy array, of numbers or of the
integers that stand for an open batch; `known` names those inputs by position. All else are tensors.

Source: ONNX, docs/Operators.md, opsets 13 to 22.
"""

from pareflow.graph_operators import arithmetic, shapes, sizes, windows  # noqa: F401  (they fill the tables)
from pareflow.graph_operators.registered import OF_SIZES, OPERATORS, Operator, as_tensor, torch_kind

__all__ = ["OF_SIZES", "OPERATORS", "Operator", "as_tensor", "torch_kind"]
