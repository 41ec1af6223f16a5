"""Level 4: the machine."""
