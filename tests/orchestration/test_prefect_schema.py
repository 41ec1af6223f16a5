"""The schema that a new embedded server starts from is what Prefect's own migrations arrive at.

After an update of Prefect: `.venv/bin/python tests/orchestration/test_prefect_schema.py` writes it anew.
"""

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

FLOWS = Path(__file__).parents[2] / "flows"
SCHEMA = FLOWS / f"prefect-{version('prefect')}.sql"


def rows(database: sqlite3.Connection, query: str) -> list[tuple[str, ...]]:
    return database.execute(query).fetchall()


def statements(database: sqlite3.Connection) -> list[str]:
    """What makes the tables, indexes and views, in the order of their making."""
    query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
    return [re.sub(r"\s+$", "", sql, flags=re.MULTILINE) for (sql,) in rows(database, query)]


def contents(path: Path) -> tuple[list[list[str]], list[tuple[str, ...]], int]:
    """All objects of a database, its revision, and the count of its rows.

    The migrations make indexes and foreign keys in the order of a set, which differs from run to run.
    """
    with closing(sqlite3.connect(path)) as database:
        objects = sorted(
            sorted(line.strip().rstrip(",") for line in sql.split("\n")) for sql in statements(database)
        )
        revision = rows(database, "SELECT version_num FROM alembic_version")
        tables = rows(database, "SELECT name FROM sqlite_master WHERE type = 'table'")
        count = sum(len(rows(database, f'SELECT 1 FROM "{name}"')) for (name,) in tables)
    return objects, revision, count


def migrated(home: Path) -> Path:
    """A new database, made by Prefect's migrations."""
    subprocess.run(
        [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"],
        env={**os.environ, "PREFECT_HOME": str(home)},
        cwd=home,
        check=True,
        capture_output=True,
    )
    return home / "prefect.db"


def from_schema(home: Path) -> Path:
    """A new database, made from the schema."""
    path = home / "schema.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA.read_text())
    return path


@pytest.mark.slow
def test_schema_is_what_the_installed_prefects_migrations_make(tmp_path: Path) -> None:
    assert contents(from_schema(tmp_path)) == contents(migrated(tmp_path))


def write() -> None:
    """Replace the schema by what the installed Prefect's migrations make."""
    with tempfile.TemporaryDirectory() as home:
        path = migrated(Path(home))
        _, ((revision,),), count = contents(path)
        assert count == 1, "the migrations also write data, which a schema does not hold"
        with closing(sqlite3.connect(path)) as database:
            made = [*statements(database), f"INSERT INTO alembic_version VALUES ('{revision}')"]
    for old in FLOWS.glob("prefect-*.sql"):
        old.unlink()
    SCHEMA.write_text("BEGIN;\n" + ";\n".join(made) + ";\nCOMMIT;\n")


if __name__ == "__main__":
    write()
