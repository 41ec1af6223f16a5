"""Stages as tasks: a stage + retry, cache and lock policy + tracking. Thin."""
