"""Documents as tables on a terminal."""
