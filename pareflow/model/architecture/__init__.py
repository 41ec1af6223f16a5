"""Networks that are found by search: what may be chosen, the supernets that share weights, the evolution."""
