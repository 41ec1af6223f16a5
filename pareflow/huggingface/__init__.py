"""Workloads from the Hugging Face ecosystem: one line per member."""

from pareflow.huggingface.classification import HuggingFace

__all__ = ["HuggingFace"]
