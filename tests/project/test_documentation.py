"""The pages of `docs/`: what they name is there, the reference is complete, and their commands run."""

import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from docs import generated
from flows import cli
from pareflow import errors, spec
from pareflow.catalog import BACKENDS, POLICIES, TECHNIQUES, WORKLOADS, Member
from pareflow.errors import PareflowError
from pareflow.serving.plan import ServingPlan
from pareflow.spec import PipelineSpec
from pareflow.stages import outcome
from tests.documentation import CHECKOUT, IN_CHECKOUT, Block, blocks, follow, pages

COMMANDS = dict(generated.leaves(typer.main.get_command(cli.app), ()))
FOLLOWED = [page for page in pages() if any(b.kind == "commands" and not b.not_run for b in blocks(page))]
ROOTS = ("README.md", "CONTRIBUTING.md")
CALL = r'(?:[(\[]|"flows\.cli", )"{}"'
"""How a test gives the words of a command: the first of its arguments, or after the module's name."""


def part(name: str) -> str:
    return "\n".join(generated.PARTS[name]())


def lines(block: Block) -> Iterator[str]:
    """The shell lines of a block, those that go on over several joined; of a text, those that are ours."""
    if block.kind != "commands":
        yield from (line for line in block.text.splitlines() if line.startswith("pareflow "))
        return
    for command, _ in block.commands():
        yield from command.replace("\\\n", " ").splitlines()


def ours(block: Block) -> Iterator[list[str]]:
    """The words of each call of `pareflow` in a block, without the command's own name."""
    called = r"(?:^|[;&|] *)(?:\w+=\S+ +)*pareflow ([^;&|<>#\n]+)"
    for words in re.findall(called, "\n".join(lines(block)), re.MULTILINE):
        yield shlex.split(words)


def path_of(words: list[str]) -> tuple[str, ...]:
    """Those of the words that name a command; none where there is no such command."""
    return next((path for path in COMMANDS if tuple(words[: len(path)]) == path), ())


def test_pages_are_found() -> None:
    how_to = ("own-model", "own-metric", "own-backend", "rollback-drill")
    assert {"docs/quickstart.md", *(f"docs/how-to/{name}.md" for name in how_to)} <= set(FOLLOWED)
    assert set(FOLLOWED) < set(pages())


@pytest.mark.parametrize("page", pages())
def test_every_block_says_its_language(page: str) -> None:
    """A block of commands without one would be run by nobody."""
    silent = [block.where for block in blocks(page) if not block.language]
    hint = "write ```bash, and above what cannot be run: *Not run by the tests: REASON.*; or ```text"
    assert silent == [], hint


@pytest.mark.parametrize("page", [*pages(), *ROOTS])
def test_commands_are_shell_and_pareflow_knows_their_words(page: str) -> None:
    """Those that are not run, too: names of commands and options must be there."""
    for block in blocks(page):
        shell = "\n".join(lines(block))
        done = subprocess.run(["bash", "-n"], input=shell, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block.where}: {done.stderr}"
        for words in ours(block):
            known(block.where, words)


def test_the_tests_that_a_page_names_in_the_place_of_a_block_call_its_commands() -> None:
    """A folder stands for all of its files."""
    found = [block for page in pages() for block in blocks(page) if stand_ins(block)]
    assert len(found) >= 8
    for block in found:
        text = "".join(text_of(name) for name in stand_ins(block))
        for words in ours(block):
            call = CALL.format('", "'.join(path_of(words)))
            assert re.search(call, text), f"{block.where}: {stand_ins(block)} call no `pareflow {words[0]}`"


def stand_ins(block: Block) -> list[str]:
    """The tests, or folders of them, that a page names in the place of a block."""
    return re.findall(r"`(tests/[\w/.]+)`", block.not_run or "")


def text_of(name: str) -> str:
    """The text of a file of Python, or of all below a folder."""
    path = CHECKOUT / name
    return "".join(file.read_text() for file in ([path] if path.is_file() else sorted(path.rglob("*.py"))))


def test_every_pipeline_and_plan_of_a_page_is_one() -> None:
    """But for those of a page that adds to the code what they name."""
    texts = {page: (CHECKOUT / page).read_text() for page in pages()}
    found = [block for page in pages() if IN_CHECKOUT not in texts[page] for block in blocks(page)]
    readers: dict[str, Any] = {"pipeline.yaml": spec.parse, "plan.yaml": _plan}
    files = [block for block in found if block.language == "yaml" and block.file]
    assert len(files) >= 6
    for block in files:
        readers[Path(str(block.file)).name](yaml.safe_load(block.text), block.where)


def _plan(document: Any, source: str) -> ServingPlan:
    return ServingPlan.model_validate(document)


def known(where: str, words: list[str]) -> None:
    """Fails unless the command line takes these words."""
    path = path_of(words)
    assert path, f"{where}: there is no `pareflow {words[0]}`"
    try:
        COMMANDS[path].make_context("pareflow", list(words[len(path) :]))
    except Exception as error:
        pytest.fail(f"{where}: `pareflow {' '.join(words)}`: {error}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", FOLLOWED)
def test_whoever_follows_a_page_gets_what_it_shows(page: str, tmp_path: Path) -> None:
    needed = {tool for tool in ("curl", "sed") if any(tool in block.text for block in blocks(page))}
    if missing := sorted(tool for tool in needed if shutil.which(tool) is None):
        pytest.skip(f"not installed: {', '.join(missing)}")
    follow(page, tmp_path)


def test_every_mark_of_a_page_names_a_part_and_every_part_has_a_page() -> None:
    marks = {name for page in pages() for name in re.findall(generated.MARK, (CHECKOUT / page).read_text())}
    assert marks == set(generated.PARTS)


def test_reference_holds_every_command_and_option() -> None:
    text = part("commands")
    for path, command in COMMANDS.items():
        section = text.partition(f"## `pareflow {' '.join(path)}`")[2].partition("\n## ")[0]
        assert section, path
        assert [p.name for p in command.params if (p.opts or [p.name])[-1] not in section] == []


@pytest.mark.parametrize(
    ("name", "family"),
    [("techniques", TECHNIQUES), ("backends", BACKENDS), ("policies", POLICIES), ("workloads", WORKLOADS)],
)
def test_reference_holds_every_member_and_setting(name: str, family: dict[str, type[Member]]) -> None:
    text = part(name)
    for member, cls in family.items():
        section = text.partition(f"## `{member}`\n")[2].partition("\n## ")[0]
        assert [key for key in cls.model_fields if f"| `{key}` |" not in section] == [], member


def test_reference_holds_every_key_of_the_pipeline() -> None:
    text = part("pipeline")
    definitions = PipelineSpec.model_json_schema()["$defs"].values()
    keys = {key for one in definitions for key in one["properties"]} | set(PipelineSpec.model_fields)
    assert [key for key in keys if f"| `{key}` |" not in text] == []


def test_reference_holds_every_other_file() -> None:
    sources = [
        path.read_text()
        for name in ("pareflow", "tasks", "flows")
        for path in (CHECKOUT / name).rglob("*.py")
    ]
    read = {name for text in sources for name in re.findall(r"(?<!def )\bread_part\(\s*(\w+)", text)}
    assert {"ServingPlan", "DeviceProfile"} <= read
    assert [name for name in read if f"### {name}\n" not in part("files")] == []


def test_reference_holds_every_variable_that_the_code_reads() -> None:
    folders = ("pareflow", "tasks", "flows")
    code = "".join(path.read_text() for name in folders for path in (CHECKOUT / name).rglob("*.py"))
    read = {*re.findall(r"PAREFLOW_[A-Z_]+", code), *re.findall(r'environ\.get\("(MLFLOW_[A-Z_]+)"', code)}
    page = (CHECKOUT / "docs/reference/environment.md").read_text()
    cells = re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)
    told = {name for cell in cells for name in re.findall(r"\w+", cell)}
    assert {"PAREFLOW_LOCK_DIR", "MLFLOW_REGISTRY_URI"} <= read
    assert sorted(read - told) == []
    assert sorted(name for name in told - read if name.startswith("PAREFLOW_")) == []


def test_reference_holds_every_error_with_its_code() -> None:
    text = part("error_classes")
    found = inspect.getmembers(errors, lambda v: inspect.isclass(v) and issubclass(v, PareflowError))
    assert len(found) > 20
    assert [name for name, cls in found if f"| `{name}` | {cls.exit_code} |" not in text] == []
    assert all(f"| {cls.exit_code} |" in part("exit_codes") for _, cls in found)


def keys_of(heading: str) -> list[str]:
    """The first column of the table under a heading of the page on JSON forms."""
    text = (CHECKOUT / "docs/reference/json.md").read_text()
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_page_on_forms_holds_the_keys_of_the_document(trained: Any) -> None:
    """Mend docs/reference/json.md where this fails: others parse these forms."""
    document = outcome.document(trained.run, trained.rows, trained.rows, None, None, None)
    assert keys_of("optimize") == list(document)
    assert keys_of("A variant") == list(document["variants"][0])
    quality = ", ".join(document["variants"][0]["quality"])
    assert f"| `quality` | `{{{quality}}}`" in (CHECKOUT / "docs/reference/json.md").read_text()
