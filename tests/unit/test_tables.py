"""Documents on a terminal."""

import io

from rich.console import Console

from flows.tables import operating


def test_versions_tell_where_they_stand_and_what_the_gate_said() -> None:
    """By hand: two environments promote and one rejects; tags of no interest to people are left out."""
    rows = [
        {
            "name": "digits",
            "version": "3",
            "aliases": ["champion"],
            "pareflow.recipe": "static_int8 → onnxruntime",
            "pareflow.content_sha256": "0123abcd",
            "pareflow.verdict.aaaaaaaaaaaa": "promote",
            "pareflow.verdict.bbbbbbbbbbbb": "reject",
            "pareflow.verdict.cccccccccccc": "promote",
        },
        {"name": "digits", "version": "2", "aliases": []},
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    operating.versions(rows, console)
    shown = console.export_text()
    assert "promote ×2, reject" in shown
    assert "static_int8 → onnxruntime" in shown
    assert "0123abcd" not in shown


def test_no_versions_are_none() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    operating.versions([], console)
    assert console.export_text() == "none\n"
