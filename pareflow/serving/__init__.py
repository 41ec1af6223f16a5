"""The registered model: raw samples in, predictions out, in the runtime that it was judged in."""
