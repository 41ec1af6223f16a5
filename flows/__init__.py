"""Order, and nothing else."""
