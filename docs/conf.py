"""Sphinx's settings. `make docs` builds the pages; warnings, broken links among them, are errors."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs import generated
from pareflow import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "pareflow"
release = __version__
extensions = ["myst_parser"]
html_theme = "furo"
html_title = f"pareflow {release}"
html_show_copyright = False
nitpicky = True
myst_heading_anchors = 4


def setup(app: "Sphinx") -> None:
    """Put what the code says in the place of each `<!-- generated: NAME -->`."""
    app.connect("source-read", lambda app, name, source: source.__setitem__(0, generated.fill(source[0])))
