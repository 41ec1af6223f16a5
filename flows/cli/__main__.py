"""`python -m flows.cli`: the console script where it is not installed."""

from flows.cli import main

if __name__ == "__main__":
    main()
