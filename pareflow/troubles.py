"""What goes wrong for a while, so that it is told once."""


class Troubles:
    """The last words about each thing that goes wrong, until it is over."""

    def __init__(self) -> None:
        self._lasting: dict[str, str] = {}

    def is_new(self, what: str, words: str) -> bool:
        """Whether the last words about it were others; from now on it is these."""
        before, self._lasting[what] = self._lasting.get(what), words
        return before != words

    def over(self, what: str) -> None:
        """It goes well: where it goes wrong again, that is new."""
        self._lasting.pop(what, None)
