"""The tokens of llama2.c's `tokenizer.bin`: pieces of text, each with a score, the best pair merged first.

Source: Sennrich et al., 2016, arXiv:1508.07909; karpathy/llama2.c, `run.c`, `encode`.
"""

import struct
from itertools import pairwise
from pathlib import Path

START = 1
BYTES = 3
"""The number of the token that stands for byte 0."""


class Tokenizer:
    def __init__(self, path: Path, size: int) -> None:
        content, offset = path.read_bytes(), 4
        self.pieces: list[bytes] = []
        self._scores: list[float] = []
        for _ in range(size):
            score, length = struct.unpack_from("<fi", content, offset)
            self.pieces.append(content[offset + 8 : offset + 8 + length])
            self._scores.append(score)
            offset += 8 + length
        self._numbers = {piece: number for number, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        """The token numbers of a text, without the one that starts it."""
        tokens = []
        for letter in f" {text}":
            piece = letter.encode()
            known = self._numbers.get(piece)
            tokens += [known] if known is not None else [BYTES + byte for byte in piece]
        while merges := [
            (-self._scores[number], place, number)
            for place, pair in enumerate(pairwise(tokens))
            if (number := self._numbers.get(self.pieces[pair[0]] + self.pieces[pair[1]])) is not None
        ]:
            _, place, number = min(merges)
            tokens[place : place + 2] = [number]
        return tokens

    def decode(self, tokens: list[int]) -> str:
        """The text of these tokens; bytes that are none stand as they are."""
        pieces = (
            bytes([token - BYTES]) if BYTES <= token < BYTES + 256 else self.pieces[token] for token in tokens
        )
        return b"".join(pieces).decode(errors="replace").removeprefix(" ")
