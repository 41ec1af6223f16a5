"""Fewer different numbers: weights that share a value, or layers that share their weights."""
