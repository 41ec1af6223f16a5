"""Metrics as local `evaluate` modules, so that none is fetched from a hub."""
