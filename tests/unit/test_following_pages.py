"""How pages are followed: what a page shows must be what its commands print, and nothing goes on after it."""

import time
from pathlib import Path

import pytest

from tests.documentation import blocks, follow


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "page.md"


def test_files_are_written_and_commands_run_in_their_order(page: Path) -> None:
    page.write_text(
        "```{code-block} text\n:caption: sub/file.txt\n\nwritten\n```\n\n"
        "```bash\nvalue=$(cat sub/file.txt)\n```\n\n"
        '```console\n$ echo "$value" twice\nwritten …\n$ pwd\n…/scratch\n```\n'
    )
    follow(str(page), page.parent / "scratch")
    assert (page.parent / "scratch" / "sub" / "file.txt").read_text() == "written\n"


@pytest.mark.parametrize(
    ("command", "printed", "told"),
    [
        ("echo two", "one", "printed\ntwo"),
        ("echo one two", "one", "printed\none two"),
        ("ls absent", "…", "code 2"),
    ],
)
def test_page_that_shows_something_else_fails(page: Path, command: str, printed: str, told: str) -> None:
    page.write_text(f"text\n\n```console\n$ true\n$ {command}\n{printed}\n$ true\n```\n")
    with pytest.raises(AssertionError, match=told) as caught:
        follow(str(page), page.parent / "scratch")
    assert "line 3" in str(caught.value)


def test_block_that_says_why_is_not_run(page: Path) -> None:
    page.write_text(
        "*Not run by the tests: it needs\na cluster.*\n\n```bash\nexit 1\n```\n\n```bash\ntrue\n```\n"
    )
    assert [block.not_run for block in blocks(str(page))] == ["it needs a cluster.", None]
    follow(str(page), page.parent / "scratch")


def test_what_a_page_leaves_running_ends_with_it(page: Path) -> None:
    page.write_text("```bash\nsleep 600 &\necho $! > pid\n```\n")
    began = time.monotonic()
    follow(str(page), page.parent / "scratch")
    pid = (page.parent / "scratch" / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()
    assert time.monotonic() - began < 60
