"""Make worker environments ahead of time: `python -m pareflow.compiler.prepare litert executorch`."""

import sys

from pareflow.compiler.environment import WorkerEnvironment

if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, WorkerEnvironment(name).ensure())
