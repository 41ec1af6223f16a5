"""The setting of runtimes on processors that hold their weights in this process: huge pages."""

from pydantic import Field

from pareflow.catalog import Member
from pareflow.hardware import huge_pages


class Paged(Member):
    """Memory in pages of 2 MiB once the executable is loaded; the answers stay the same.

    1.07 times as fast on the intent transformer (130 MiB of weights) and on ResNet-18 (`bench/compiler.py`),
    and half a second more to load; nothing where weights fit the caches.
    """

    huge_pages: bool = Field(default=False, description="memory in pages of 2 MiB after loading")

    def pages_unfit(self) -> str | None:
        """Why the setting is pointless here, or None."""
        return huge_pages.unfit() if self.huge_pages else None

    def paged(self) -> str:
        """Put what is loaded in huge pages where the settings ask for it; a note of how much that was."""
        return f"{huge_pages.collapse():.0f} MiB put in huge pages" if self.huge_pages else ""
