"""The pages of `docs/` as their readers follow them: files that they write, commands that they run."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token

CHECKOUT = Path(__file__).parents[1]
NOT_RUN = re.compile(r"\*Not run by the tests: (.+)\*$", re.DOTALL)
"""The visible line above a block that says why the tests leave it out."""
IN_CHECKOUT = "<!-- scratch: checkout -->"
"""In a page whose commands are given in a clone of pareflow."""
PORT = re.compile(r"\b8000\b")
LIMIT_S = 1500
_END_ALL = 'while [ -n "$(jobs -pr)" ]; do kill $(jobs -pr) 2>/dev/null || true; sleep 0.2; done'
"""Asked again: what was started a moment ago may not hear the first signal."""


@dataclass(frozen=True)
class Block:
    """A fenced block: commands (`bash`, `console`), a file to write (with a caption), or text to read."""

    page: str
    line: int
    language: str
    text: str
    file: str | None
    not_run: str | None

    @property
    def kind(self) -> Literal["commands", "file", "other"]:
        if self.language in ("bash", "console"):
            return "commands"
        return "file" if self.file else "other"

    @property
    def where(self) -> str:
        return f"{self.page}, line {self.line}"

    def commands(self) -> Iterator[tuple[str, str | None]]:
        """Shell text, and what it must print where the page shows that, with `…` for anything."""
        if self.language == "bash":
            yield self.text, None
            return
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed.strip()


def pages() -> list[str]:
    """Every page, as a path from the checkout."""
    return sorted(str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "docs").rglob("*.md"))


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    tokens = MarkdownIt().parse((CHECKOUT / page).read_text())
    return [_block(page, tokens, i) for i, token in enumerate(tokens) if token.type == "fence"]


def _block(page: str, tokens: list[Token], position: int) -> Block:
    token = tokens[position]
    above = tokens[position - 2].content if position >= 2 and tokens[position - 1].level == 0 else ""
    told = NOT_RUN.match(above)
    language = token.info.removeprefix("{code-block}").strip()
    caption = re.match(r":caption: (\S+)\n+", token.content)
    return Block(
        page,
        (token.map or [0])[0] + 1,
        language,
        token.content[caption.end() :] if caption else token.content,
        caption[1] if caption else None,
        " ".join(told[1].split()) if told else None,
    )


def follow(page: str, scratch: Path) -> None:
    """Do what the page says, in `scratch`, as one shell session. Raises: AssertionError."""
    root = CHECKOUT
    if IN_CHECKOUT in (CHECKOUT / page).read_text():
        root = scratch
        tracked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(tracked, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, scratch / name)
    seen = scratch / ".printed"
    seen.mkdir()
    todo = [block for block in blocks(page) if block.kind != "other" and block.not_run is None]
    script, expected = _script(todo, seen)
    bounded = ["timeout", "--kill-after=60", str(LIMIT_S), "bash", "-c", script]  # and what it started
    done = subprocess.run(
        bounded, cwd=scratch, env=_environment(seen, root), capture_output=True, text=True, check=False
    )
    last = "none"
    for (where, command, printed), path in zip(expected, sorted(seen.glob("*.out")), strict=False):
        said = path.read_text()
        assert printed is None or _matches(printed, said), f"{where}: `{command}` printed\n{said}"
        last = f"{where}: `{command}`\n{said}"
    assert done.returncode == 0, f"exit code {done.returncode}; the last was {last}\n{done.stderr}"
    assert len(list(seen.glob("*.out"))) == len(expected)


def _script(todo: list[Block], seen: Path) -> tuple[str, list[tuple[str, str, str | None]]]:
    """One shell script, each command's output in a file of its own; and where, what, and what it must print.

    What it leaves running ends with it.
    """
    with socket.socket() as free:  # other tests use the port that pages name
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    lines = ["set -euo pipefail", f"trap '{_END_ALL}' EXIT"]
    expected = []
    for block in todo:
        if block.file:
            text = seen / f"{len(lines)}.file"
            text.write_text(block.text)
            lines.append(f"mkdir -p $(dirname {block.file}); cp {text} {block.file}")
            continue
        for command, printed in block.commands():
            expected.append((block.where, command.strip(), printed))
            lines.append(f"{{ {re.sub(PORT, port, command.strip())}\n}} > {seen}/{len(expected):03}.out 2>&1")
    return "\n".join(lines), expected


def _environment(seen: Path, root: Path) -> Mapping[str, str]:
    """`pareflow` is that of `root`, `python` this one; no server of the machine's is used."""
    command = seen / "bin" / "pareflow"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m flows.cli "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    servers = {"MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL", "PAREFLOW_STORE"}
    kept = {name: value for name, value in os.environ.items() if name not in servers}
    return {**kept, "PATH": path, "PYTHONPATH": str(root)}


def _matches(printed: str, said: str) -> bool:
    """Whether all that was said is what the page shows, where `…` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in printed.split("…"))
    return re.fullmatch(pattern, said.strip(), re.DOTALL) is not None
