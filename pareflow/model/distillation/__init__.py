"""A smaller network that learns from a larger one, or from itself."""
