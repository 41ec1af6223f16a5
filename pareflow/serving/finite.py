"""Which numbers a request may hold."""

import numpy as np


def allowed(array: np.ndarray, *, missing: bool) -> bool:
    """Whether every number is finite; or NaN, where some may be `missing`."""
    return array.dtype.kind != "f" or bool((~np.isinf(array) if missing else np.isfinite(array)).all())
