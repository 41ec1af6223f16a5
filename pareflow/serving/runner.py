"""Run this bundle: `python run.py INPUT …`, or `python run.py --self-test`.

It needs what requirements.txt names, and no more: `pip install --no-deps -r requirements.txt`.

INPUT is a .npy array whose first axis counts the samples, a .json list of samples, or a .txt file with a
text per line; `-` reads one JSON list per line from stdin. Each gives one line of JSON. The exit status is 0,
or 1 where a file of the bundle is damaged, something is missing, or the golden outputs are not repeated.
"""

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
CHECKSUMS = "checksums.sha256"
SEAL = "# sha256 of the lines above: "
SHOWN = 5


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    problems = damages(ROOT) or absent(ROOT)
    if problems:
        return _fail(problems)
    try:
        model = opened(ROOT, asked.cache_mib)
        if asked.self_test:
            return self_test(ROOT, model)
        for path in asked.input:
            for samples in read(path):
                print(json.dumps(answer(ROOT, model, samples)), flush=True)
    except Exception as error:
        return _fail([f"{type(error).__name__}: {error}"])
    if asked.cache_mib:
        print(f"cache: {model.session.hits} hits, {model.session.misses} misses", file=sys.stderr)
    return 0


def damages(root: Path) -> list[str]:
    """Which files are missing or are not what was exported, in words."""
    try:
        lines, _, seal = (root / CHECKSUMS).read_text().rpartition(SEAL)
    except (OSError, ValueError) as error:
        return [f"{CHECKSUMS} cannot be read: {error}"]
    if hashlib.sha256(lines.encode()).hexdigest() != seal.strip():
        return [f"{CHECKSUMS} is not what was exported"]
    found = []
    for line in lines.splitlines():
        digest, _, name = line.partition("  ")
        if not (root / name).is_file():
            found.append(f"{name} is missing")
        elif hashlib.sha256((root / name).read_bytes()).hexdigest() != digest:
            found.append(f"{name} is not what was exported")
    return found


def pinned(root: Path) -> dict[str, str]:
    """The version of each distribution that the bundle was tested with."""
    lines = (root / "requirements.txt").read_text().split()
    return dict(line.split("==") for line in lines)


def installed(name: str) -> str | None:
    """The version, without what a build is for (`+cpu`)."""
    try:
        return importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def absent(root: Path) -> list[str]:
    """What must be installed and is not. Other versions are told by the self-test, and judged by it."""
    return [
        f"{name}=={version} must be installed: pip install --no-deps -r requirements.txt"
        for name, version in pinned(root).items()
        if installed(name) is None
    ]


def opened(root: Path, cache_mib: float = 0) -> Any:
    """The model, in the bundle's own code whatever is installed; behind a cache where one is asked for."""
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(root / "code"))
    for name in json.loads((root / "bundle.json").read_text())["modules"]:
        importlib.import_module(name)
    from pareflow.serving.model import PackagedModel

    model = PackagedModel(root / "package")
    return cached(model, cache_mib) if cache_mib else model


def cached(model: Any, mib: float) -> Any:
    """The model behind a cache of its network's answers."""
    from pareflow.runtime.caching.session import CachedSession

    model.session = CachedSession(model.session, int(mib * 2**20))
    return model


def self_test(root: Path, model: Any) -> int:
    """Repeat the golden samples, also from a cache; say what ran, and what differs."""
    ran = model.session.ran()
    print(f"ran on {ran.runtime} {ran.version}, {ran.precision}, {ran.device}, {ran.threads} threads")
    for name, version in pinned(root).items():
        if installed(name) != version:
            print(f"{name} is {installed(name)}; the bundle was tested with {version}")
    model.check_golden()
    cached(model, mib=64).check_golden()
    answer(root, model, model.golden_samples)
    print("self-test passed: every file is whole, and every golden output is repeated")
    return 0


def read(path: str) -> Iterator[Any]:
    """Lists of samples. Raises: ValueError, OSError."""
    if path == "-":
        yield from (json.loads(line) for line in sys.stdin if line.strip())
    elif path.endswith(".npy"):
        import numpy as np

        yield np.load(path)
    elif path.endswith(".json"):
        yield json.loads(Path(path).read_text())
    elif path.endswith(".txt"):
        text = Path(path).read_text(encoding="utf-8")
        yield text.removesuffix("\n").split("\n") if text else []
    else:
        raise ValueError(f"an input must end in .npy, .json or .txt, but got {path}")


def answer(root: Path, model: Any, samples: Any) -> dict[str, Any]:
    """The predictions, and the names of the classes where the bundle has them."""
    predictions = model.predict(samples).tolist()
    labels = root / "labels.json"
    if not labels.is_file():
        return {"predictions": predictions}
    return {"predictions": predictions, "labels": named(predictions, json.loads(labels.read_text()))}


def named(predictions: Any, names: Sequence[str]) -> Any:
    """The name of each class, in lists as deep as the predictions'; null where it is no class's position."""
    if isinstance(predictions, list):
        return [named(prediction, names) for prediction in predictions]
    is_one = isinstance(predictions, int) and 0 <= predictions < len(names)
    return names[predictions] if is_one else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("input", nargs="*", default=[], help=".npy, .json or .txt file, or -")
    what.add_argument("--self-test", action="store_true", help="check every file, repeat the golden outputs")
    parser.add_argument(
        "--cache-mib", type=float, default=0, help="keep answers to equal requests, so many MiB"
    )
    return parser


def _fail(problems: Sequence[str]) -> int:
    for problem in problems[:SHOWN]:
        print(f"error: {problem}", file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"error: and {len(problems) - SHOWN} more", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
