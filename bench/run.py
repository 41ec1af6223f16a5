"""Every script of this folder that measures claims, one table each."""

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "digits.py",
    "intent.py",
    "peers.py",
    "overhead.py",
    "gate.py",
    "brief.py",
    "search.py",
    "resume.py",
    "techniques.py",
    "compiler.py",
    "tuning.py",
    "devices.py",
    "processor.py",
    "splitting.py",
    "pipelining.py",
    "caching.py",
    "cascade.py",
    "decoding.py",
    "serving.py",
    "triggers.py",
    "rollback.py",
    "monitoring.py",
    "production.py",
    "gpu.py",
)


def main() -> None:
    """Run each in turn, with the arguments given here; the status of the first that failed."""
    folder = Path(__file__).parent
    for script in SCRIPTS:
        done = subprocess.run([sys.executable, folder / script, *sys.argv[1:]], check=False)
        if done.returncode != 0:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
