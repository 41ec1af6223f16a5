"""The schema that a new embedded server starts from is what Prefect's own migrations arrive at.

After an update of Prefect: `.venv/bin/python tests/orchestration/test_prefect_schema.py` writes it anew.
"""

import os
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

FLOWS = Path(__file__).parents[2] / "flows"
SCHEMA = FLOWS / f"prefect-{version('prefect')}.sql"


def contents(path: Path) -> tuple[list[tuple[str, ...]], list[tuple[str]], int]:
    """All objects of a database in the order of their making, its revision, and the count of its rows."""
    with closing(sqlite3.connect(path)) as database:
        objects = database.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
            " ORDER BY rowid"
        ).fetchall()
        revision = database.execute("SELECT version_num FROM alembic_version").fetchall()
        tables = [name for kind, name, _ in objects if kind == "table"]
        rows = sum(database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables)
    return objects, revision, rows


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


def test_schema_is_what_the_installed_prefects_migrations_make(tmp_path: Path) -> None:
    assert contents(from_schema(tmp_path)) == contents(migrated(tmp_path))


def write() -> None:
    """Replace the schema by what the installed Prefect's migrations make."""
    with tempfile.TemporaryDirectory() as home:
        objects, ((revision,),), rows = contents(migrated(Path(home)))
    assert rows == 1, "the migrations also write data, which a schema does not hold"
    statements = [sql.rstrip() for *_, sql in objects]
    statements.append(f"INSERT INTO alembic_version VALUES ('{revision}')")
    for old in FLOWS.glob("prefect-*.sql"):
        old.unlink()
    SCHEMA.write_text("BEGIN;\n" + ";\n".join(statements) + ";\nCOMMIT;\n")


if __name__ == "__main__":
    write()
