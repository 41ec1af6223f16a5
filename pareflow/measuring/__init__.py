"""The instruments: they return raw samples, and judge nothing."""
