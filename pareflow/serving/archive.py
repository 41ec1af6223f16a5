"""One archive of a folder, .tar.gz or .zip: the same files give the same bytes, whenever and by whom."""

import gzip
import os
import tarfile
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

from pareflow.errors import InputError
from pareflow.serving.output import writing

SUFFIXES = (".tar.gz", ".tgz", ".zip")
_FIRST = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip can say."""


def check_target(path: Path) -> None:
    """Prove that an archive can be written there, before hours are spent. Raises: InputError, StoreError."""
    if not path.name.endswith(SUFFIXES):
        raise InputError(f"an archive must end in {', '.join(SUFFIXES)}", f"got {path}", "Name it so in --to")
    if path.is_dir():
        raise InputError("--to must name a file", f"{path} is a folder", "Name a file in it")
    with writing(path), tempfile.TemporaryFile(dir=path.parent):
        pass


def write(folder: Path, path: Path, root: str) -> None:
    """Pack every file of `folder` under `root/`: whole, or not at all. Raises: InputError, StoreError."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    named = [(f"{root}/{file.relative_to(folder).as_posix()}", file) for file in files]
    with writing(path):
        descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        try:
            (_zip if path.suffix == ".zip" else _tar)(named, Path(partial))
            Path(partial).chmod(0o644)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)


def _tar(named: list[tuple[str, Path]], path: Path) -> None:
    with (
        path.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, source in named:
            content = source.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, BytesIO(content))


def _zip(named: list[tuple[str, Path]], path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in named:
            entry = zipfile.ZipInfo(name, _FIRST)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is made
            archive.writestr(entry, source.read_bytes())
