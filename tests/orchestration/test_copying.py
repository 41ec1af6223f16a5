"""Copies between registries: the files arrive whole, and no verdict of another environment comes along."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pareflow import spec as specs
from pareflow.errors import InputError, TrackingError
from pareflow.serving.model import verified
from pareflow.stages.run import Row
from pareflow.variant import digest
from tasks import audit
from tasks.copying import ORIGIN, copy
from tasks.promotion import challenge, number, promote, promote_challenger
from tasks.serving import RegistrySource
from tasks.tracking import CONTENT, Tracker, verdict_tag_of, where_judged
from tests.orchestration.conftest import Judged


@pytest.fixture
def development(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    return new_tracker(tmp_path / "development")


@pytest.fixture
def production(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    return new_tracker(tmp_path / "production")


@pytest.fixture
def register(development: Tracker) -> Callable[[Judged, Row], str]:
    """Register a row in development, and make it champion; the number of its version."""

    def registered(judged: Judged, row: Row) -> str:
        parent = development.begin(judged.run)
        version = development.register(judged.run, parent, judged.package(row), row)
        promote(development, judged.run, str(version.version), row)
        return str(version.version)

    return registered


def copied(development: Tracker, production: Tracker, tmp_path: Path) -> str:
    told = copy(development, "models:/images@champion", production.uri, tmp_path / "development", by="Ada")
    return str(told["version"])


def test_a_copy_is_what_was_registered_and_arrives_as_challenger_without_a_verdict(
    development: Tracker,
    production: Tracker,
    judged: Judged,
    register: Callable[[Judged, Row], str],
    tmp_path: Path,
) -> None:
    here = register(judged, judged.int8)
    there = copied(development, production, tmp_path)
    assert there == copied(development, production, tmp_path), "copied again, it is the same version"
    ours, theirs = development.version("images", here), production.version("images", there)
    assert theirs.tags[CONTENT] == ours.tags[CONTENT]
    assert theirs.tags[ORIGIN] == f"{development.uri} models:/images/{here}"
    assert ours.tags[verdict_tag_of(where_judged(judged.run, "onnxruntime"))] == "promote"
    assert not [tag for tag in theirs.tags if tag.startswith(("pareflow.verdict.", "pareflow.against."))]
    assert number(production, "images", "challenger") == there
    assert number(production, "images", "champion") is None
    shutil.rmtree(tmp_path / "development")  # it needs nothing of where it came from
    assert production.download("images", there, tmp_path).is_dir()


def test_both_registries_record_the_copy(
    development: Tracker,
    production: Tracker,
    judged: Judged,
    register: Callable[[Judged, Row], str],
    tmp_path: Path,
) -> None:
    here = register(judged, judged.int8)
    there = copied(development, production, tmp_path)
    sent, arrived = audit.history(development, "images")[-1], audit.history(production, "images")[-1]
    assert (sent["action"], sent["version"], sent["by"]) == ("copied", here, "Ada")
    assert sent["after"] == f"{production.uri} models:/images/{there}"
    assert (arrived["action"], arrived["after"], arrived["by"]) == ("copied", there, "Ada")
    assert sent["before"] in arrived["reason"]


@pytest.mark.slow
def test_a_copy_is_judged_where_it_arrives_before_it_is_champion(
    development: Tracker,
    production: Tracker,
    judged: Judged,
    register: Callable[[Judged, Row], str],
    tmp_path: Path,
) -> None:
    """Law 8: another machine, whose SLA it misses there; then one whose SLA it meets."""
    register(judged, judged.int8)
    there = copied(development, production, tmp_path)
    document = judged.run.spec.to_json()
    strict = specs.parse({**document, "sla": {**document["sla"], "size": {"max_mib": 1e-4}}}, "a strict SLA")
    refused = promote_challenger(production, dataclasses.replace(judged.run, spec=strict))
    assert refused["alias"] == "challenger"
    assert "size.max_mib" in refused["reason"]
    assert (
        production.version("images", there).tags[verdict_tag_of(where_judged(judged.run, "onnxruntime"))]
        == "reject"
    )

    production.client.delete_model_version_tag(
        "images", there, verdict_tag_of(where_judged(judged.run, "onnxruntime"))
    )
    moved = promote_challenger(production, judged.run)
    assert (moved["version"], moved["alias"]) == (there, "champion")
    assert (
        production.version("images", there).tags[verdict_tag_of(where_judged(judged.run, "onnxruntime"))]
        == "promote"
    )


@pytest.mark.slow
def test_a_copy_goes_to_a_server_whose_name_and_password_are_written_nowhere(
    development: Tracker,
    judged: Judged,
    register: Callable[[Judged, Row], str],
    server: Callable[[int], object],
    free_port: int,
    tmp_path: Path,
) -> None:
    """Files and records go through the server, which asks for no password and is told one."""
    server(free_port)
    register(judged, judged.int8)
    uri = f"http://ada:secret@127.0.0.1:{free_port}"
    told = copy(development, "models:/images@champion", uri, tmp_path / "development")
    production = Tracker.at(f"http://127.0.0.1:{free_port}", tmp_path / "development")
    assert number(production, "images", "challenger") == told["version"]
    assert (tmp_path / "served").is_dir(), "its artifacts lie with the server"
    written = repr((told, audit.history(development, "images"), audit.history(production, "images")))
    assert f"http://127.0.0.1:{free_port} models:/images/" in written
    assert "secret" not in written
    assert promote_challenger(production, judged.run)["alias"] == "champion"


def test_a_version_that_was_registered_by_its_files_alone_is_served_and_copied(
    development: Tracker, production: Tracker, packaged: Callable[..., Path], tmp_path: Path
) -> None:
    """As they were before the tag `pareflow.format` said 2."""
    placed = shutil.copytree(packaged("images"), tmp_path / "old" / "data" / "package")
    named_by = {name: sha256 for name, sha256 in verified(placed)["files"].items() if name != "golden.json"}
    development.client.create_registered_model("images")
    source, tags = (tmp_path / "old").as_uri(), {CONTENT: digest(named_by)}
    development.client.create_model_version("images", source, tags=tags)
    development.set_alias("images", "champion", "1")
    assert RegistrySource("models:/images@champion", tmp_path / "development").current().version == "1"
    there = production.version("images", copied(development, production, tmp_path))
    assert there.tags[CONTENT] == tags[CONTENT]
    assert RegistrySource("models:/images/1", tmp_path / "production").current().version == "1"


def test_a_damaged_version_is_not_copied(
    development: Tracker,
    production: Tracker,
    judged: Judged,
    register: Callable[[Judged, Row], str],
    tmp_path: Path,
) -> None:
    register(judged, judged.int8)
    flip_a_bit(development)
    with pytest.raises(InputError, match="as it was packaged"):
        copied(development, production, tmp_path)
    assert production.versions("images") == []


def test_a_copy_that_is_damaged_on_the_way_is_no_challenger(
    development: Tracker,
    production: Tracker,
    judged: Judged,
    register: Callable[[Judged, Row], str],
    tmp_path: Path,
) -> None:
    """Registered there before, and damaged since."""
    register(judged, judged.int8)
    copied(development, production, tmp_path)
    production.client.delete_registered_model_alias("images", "challenger")
    flip_a_bit(production)
    with pytest.raises((InputError, TrackingError)):
        copied(development, production, tmp_path)
    assert number(production, "images", "challenger") is None


def flip_a_bit(tracker: Tracker) -> None:
    for model in Path(str(tracker.artifacts)).rglob("package/artifact/*.onnx"):
        content = bytearray(model.read_bytes())
        content[len(content) // 2] ^= 1
        model.write_bytes(content)


def test_a_registry_is_no_copy_of_itself(development: Tracker, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="another registry"):
        copy(development, "models:/images@champion", development.uri, tmp_path)


def test_a_version_whose_package_was_exchanged_is_not_promoted(
    development: Tracker, judged: Judged, register: Callable[[Judged, Row], str]
) -> None:
    """Whole in itself, but not what was registered: another version's files in its place."""
    champion = register(judged, judged.fp32)
    parent = development.begin(judged.run)
    version = str(development.register(judged.run, parent, judged.package(judged.int8), judged.int8).version)
    packages = {
        found: Path(str(development.version("images", found).source).removeprefix("file://"))
        / "data"
        / "package"
        for found in (champion, version)
    }
    shutil.rmtree(packages[version])
    shutil.copytree(packages[champion], packages[version])
    with pytest.raises(InputError, match="must be what was registered"):
        challenge(development, judged.run, version)
    with pytest.raises(InputError, match="must be what was registered"):
        promote(development, judged.run, version, judged.int8)
    assert number(development, "images", "champion") == champion
