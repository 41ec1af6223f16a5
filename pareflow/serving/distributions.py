"""What must be installed to run a package: distributions, what they need themselves, and their licences.

`where` is a folder of distributions, such as that of a worker environment; by default this interpreter's.
"""

import importlib.metadata
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pareflow
from pareflow.catalog import installed_version
from pareflow.errors import EnvironmentUnfitError


def closure(names: Iterable[str], where: Path | None = None) -> dict[str, str]:
    """The installed version of each distribution, and of all that these require here, sorted by name.

    Without what a build is for (`+cpu`). Raises: EnvironmentUnfitError where one is not installed.
    """
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    due = [normalized(name) for name in names]
    while due:
        name = due.pop()
        if name in found:
            continue
        version = _version(name, where)
        if version is None:
            raise EnvironmentUnfitError(
                "what a bundle asks for must be installed where it is made",
                f"{name} is not in {where}" if where else f"{name} is not",
                "A worker's bundle can ask for no more than its environment's lock holds"
                if where
                else f"Run `pip install {name}`, then the same command again",
            )
        found[name] = version.partition("+")[0]
        required = (Requirement(text) for text in _distribution(name, where).requires or ())
        due += [normalized(r.name) for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return dict(sorted(found.items()))


def _distribution(name: str, where: Path | None) -> importlib.metadata.Distribution:
    """Raises: PackageNotFoundError."""
    if where is None:
        return importlib.metadata.distribution(name)
    found = next(iter(importlib.metadata.distributions(name=name, path=[str(where)])), None)
    if found is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return found


def _version(name: str, where: Path | None) -> str | None:
    if where is None:
        return installed_version(name)
    try:
        return _distribution(name, where).version
    except importlib.metadata.PackageNotFoundError:
        return None


def modules(distributions: Iterable[str], where: Path | None = None) -> list[str]:
    """The top-level modules of these distributions, sorted."""
    if where is not None:
        files = (file for name in distributions for file in _distribution(name, where).files or ())
        return sorted({file.parts[0].partition(".")[0] for file in files} - {""})
    wanted = set(distributions)
    by_module = importlib.metadata.packages_distributions()
    return sorted(m for m, owners in by_module.items() if wanted & set(map(normalized, owners)))


def licences(versions: Mapping[str, str], where: Path | None = None) -> list[dict[str, str]]:
    """Name, version, licence and home of each distribution, as its own metadata say; first pareflow's own."""
    ours = {
        "name": "pareflow",
        "version": pareflow.__version__,
        "licence": "Apache-2.0",
        "home": "",
        "shipped": "its modules in code/",
    }
    return [ours, *(_licence(name, version, where) for name, version in versions.items())]


def _licence(name: str, version: str, where: Path | None) -> dict[str, str]:
    metadata = _distribution(name, where).metadata

    def said(key: str) -> list[str]:
        return metadata.get_all(key) or []

    classifiers = [text.rpartition(" :: ")[2] for text in said("Classifier") if text.startswith("License ::")]
    stated = next(iter([*said("License-Expression"), *map(_first_line, said("License"))]), "")
    homes = [*said("Home-page"), *(text.rpartition(", ")[2] for text in said("Project-URL"))]
    return {
        "name": name,
        "version": version,
        "licence": stated or ", ".join(classifiers) or "not stated in its metadata",
        "home": homes[0] if homes else "",
        "shipped": "no: installed from requirements.txt",
    }


def licence_text() -> str:
    """The text of pareflow's own licence, whose modules a bundle holds."""
    beside = Path(str(pareflow.__file__)).parents[1] / "LICENSE"
    if beside.is_file():
        return beside.read_text()
    files = importlib.metadata.files("pareflow") or []
    return next(file.read_text() for file in files if file.name == "LICENSE")


def normalized(name: str) -> str:
    """A distribution's name as indexes compare it. Source: packaging.python.org, "Name normalization"."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _first_line(text: str) -> str:
    """The licence's name: some distributions put its whole text there."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else ""
