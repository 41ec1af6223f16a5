"""Fill an MLflow database with copies of its one pipeline: `registry_rows.py URL VERSIONS RUNS`.

Rows are copied in the database, since the API would take an hour: the one version becomes VERSIONS more of
its model, and one variant's run, with its tags, params and metrics, RUNS more of its experiment.
"""

import sys
import uuid
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

OF_A_RUN = ("tags", "params", "metrics", "latest_metrics")


def main() -> None:
    """Copy, in one transaction."""
    url, versions, runs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.begin() as connection:
        _versions(connection, tables.tables, versions)
        _runs(connection, tables.tables, runs)


def _versions(connection: sa.Connection, tables: Any, count: int) -> None:
    (version,) = _rows(connection, tables["model_versions"])
    tags = _rows(connection, tables["model_version_tags"])
    numbers = range(2, count + 2)
    _insert(connection, tables["model_versions"], ({**version, "version": n} for n in numbers))
    _insert(connection, tables["model_version_tags"], ({**t, "version": n} for n in numbers for t in tags))


def _runs(connection: sa.Connection, tables: Any, count: int) -> None:
    """Copies of the run with the most metrics: a variant's."""
    metrics = [row["run_uuid"] for row in _rows(connection, tables["latest_metrics"])]
    original = max(metrics, key=metrics.count)
    ids = [uuid.uuid4().hex for _ in range(count)]
    for name in ("runs", *OF_A_RUN):
        rows = [row for row in _rows(connection, tables[name]) if row["run_uuid"] == original]
        _insert(connection, tables[name], (_of(row, one) for one in ids for row in rows))


def _of(row: dict[str, Any], run: str) -> dict[str, Any]:
    """A row of another run; the key that pareflow finds a run by is its own."""
    changed = {"value": f"{run}:0"} if row.get("key") == "pareflow.key" else {}
    return {**row, **changed, "run_uuid": run}


def _rows(connection: sa.Connection, table: sa.Table) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def _insert(connection: sa.Connection, table: sa.Table, rows: Iterable[dict[str, Any]]) -> None:
    held = list(rows)
    for start in range(0, len(held), 5000):
        connection.execute(sa.insert(table), held[start : start + 5000])


if __name__ == "__main__":
    main()
