"""No pickle of a registered model runs what its writer chose; and ours names nothing but networks."""

import ast
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pareflow.errors import InputError
from pareflow.serving import pickled
from pareflow.serving.model import PackagedModel, verified, write_manifest
from pareflow.stages.registration import opened
from pareflow.variant import Step

UNPICKLING = {
    "pareflow/compiler/workers/forked.py",  # what a child of this process says through a pipe
    "pareflow/network.py",  # the store's own; in a package after `pickled.check`
}


class Forged:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def forged(marker: Path, protocol: int) -> bytes:
    return pickle.dumps(Forged(marker), protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("archived", [False, True])
def test_what_runs_code_is_refused_and_not_run(tmp_path: Path, protocol: int, archived: bool) -> None:
    content = forged(tmp_path / "ran", protocol)
    folder = tmp_path / "artifact"
    folder.mkdir()
    if archived:
        with zipfile.ZipFile(folder / "network.pt", "w") as archive:
            archive.writestr("network/data.pkl", content)
    else:
        (folder / "weights.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"would run (posix system|a computed name)"):
        pickled.check(folder)
    assert not (tmp_path / "ran").exists()


def zipped(*entries: tuple[str, bytes], comment: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def tarred(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


FINE = ("network/data.pkl", pickle.dumps({}, 2))
FORMS: Mapping[str, Callable[[bytes], bytes]] = {
    "legacy": lambda bad: pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + bad,
    "protocol 0": lambda bad: bad,
    "tar": tarred,
    "an archive behind a pickle": lambda bad: bad + zipped(FINE),
    "an archive behind another": lambda bad: zipped(("network/data.pkl", bad)) + zipped(FINE),
    "a name in another case": lambda bad: zipped(FINE, ("network/DATA.PKL", bad)),
    "the same name twice": lambda bad: zipped(FINE, (FINE[0], bad)),
    "a directory in a comment": lambda bad: zipped(FINE, comment=bad),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("form", FORMS)
def test_what_torch_would_open_otherwise_than_it_is_read_is_refused(tmp_path: Path, form: str) -> None:
    (tmp_path / "network.pt").write_bytes(FORMS[form](forged(tmp_path / "ran", 0)))
    with pytest.raises(InputError, match="no archive with one pickle"):
        pickled.check(tmp_path)
    (tmp_path / "network.pt").write_bytes(zipped(FINE))
    pickled.check(tmp_path)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(pickle.dumps(list(range(100)), 2)[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        pickled.check(tmp_path)


def test_a_package_with_a_forged_module_is_not_opened(packaged: Callable[..., Path], tmp_path: Path) -> None:
    """With digests as they should be: who can write artifacts can write those, too."""
    package = copied(packaged("images", Step("torch_eager", {"threads": 1})), tmp_path / "package")
    PackagedModel(package)  # as it was made
    with zipfile.ZipFile(package / "artifact" / "network.pt", "w") as archive:
        archive.writestr("network/data.pkl", forged(tmp_path / "ran", 2))
    document = json.loads((package / "model.json").read_text())
    (package / "model.json").unlink()
    write_manifest(package, {name: value for name, value in document.items() if name != "files"})
    verified(package)
    with pytest.raises(InputError, match="would run posix system"):
        PackagedModel(package)
    assert not (tmp_path / "ran").exists()


def copied(package: Path, into: Path) -> Path:
    for path in package.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            target = into / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return into


def test_a_package_of_a_plain_runtime_holds_no_pickle(packaged: Callable[..., Path]) -> None:
    files = [path for path in packaged("images").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [path for path in files if list(pickled._pickles(path))] == []


def test_a_package_keeps_code_in_folders_and_opens_by_itself(
    own_workloads: Path, make_package: Callable[..., Path], tmp_path: Path
) -> None:
    """Also a torch module, whose pickle names what that code defines."""
    (own_workloads / "models").mkdir()
    (own_workloads / "networks.py").rename(own_workloads / "models" / "networks.py")
    code = own_workloads / "images.py"
    code.write_text(code.read_text().replace("from .networks", "from .models.networks"))
    step = Step("torch_eager", {"threads": 1})
    package = make_package({"file": {"path": "images.py"}}, own_workloads, tmp_path / "store", step, "below")
    assert (package / "workload" / "models" / "networks.py").is_file()
    shutil.rmtree(own_workloads)
    opened(package, tmp_path / "check.log")


def test_nothing_else_unpickles(checkout: Path) -> None:
    """Calls that run what a file says: none but where they are known."""
    found = {
        str(path.relative_to(checkout))
        for folder in ("pareflow", "tasks", "flows")
        for path in (checkout / folder).rglob("*.py")
        if any(unpickles(path.read_text()))
    }
    assert found == UNPICKLING


def unpickles(code: str) -> Iterator[bool]:
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        yield called in {"pickle.load", "pickle.loads", "cloudpickle.load", "joblib.load", "pickle.Unpickler"}
        yield called == "torch.load" and given.get("weights_only") != "True"
        yield called.endswith(("np.load", "numpy.load")) and given.get("allow_pickle") == "True"
        yield called.startswith("mlflow.") and called.endswith(".load_model")


@pytest.mark.parametrize(
    "code",
    ["pickle.loads(b)", "torch.load(p)", "np.load(p, allow_pickle=True)", "mlflow.pyfunc.load_model(u)"],
)
def test_the_search_finds_them(code: str) -> None:
    assert any(unpickles(code))
    assert not any(unpickles("np.load(p); torch.load(p, weights_only=True); json.loads(t)"))
