"""`bench/cranfield.py`: how the collection is read, and BM25 beside its formula by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def cranfield(bench: Callable[[str], Any]) -> Any:
    return bench("cranfield")


def test_records_by_hand(cranfield: Any, tmp_path: Path) -> None:
    """Titles are not told twice; a document may have no text; questions are judged by their position."""
    documents = (
        ".I 1\n.T\nwings in\nair\n.A\nx\n.B\ny\n.W\nwings in\nair\nthey lift .\n.I 2\n.T\n.A\n.B\n.W\n"
    )
    (tmp_path / "cran.all.1400").write_text(documents)
    (tmp_path / "cran.qry").write_text(".I 001\n.W\nwhat lifts\n.I 004\n.W\nwhy .\n")
    (tmp_path / "cranqrel").write_text("1 1 2 \n2 1 -1\n2 2 4\n")
    found = cranfield.Collection.read(tmp_path)
    assert found.documents == ["wings in air they lift .", " "]
    assert found.questions == ["what lifts", "why ."]
    assert found.relevant.tolist() == [[1, 0], [0, 1]]


def test_bm25_by_hand(cranfield: Any) -> None:
    """`wing` is in one of two documents, twice in three words; both documents have 2.5 words on average."""
    index = cranfield.Bm25(["wing wing lift", "flow lift"])
    rarity = math.log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    full = 2 + 1.2 * (1 - 0.75 + 0.75 * 3 / 2.5)
    assert index.scores("wing unheard") == pytest.approx([rarity * 2 * 2.2 / full, 0])


def test_ndcg_by_hand(cranfield: Any) -> None:
    """Of two relevant documents one is first and one third: (1 + 1/2) / (1 + 1/log2 3)."""
    found = cranfield.ndcg(np.array([9.0, 8, 7, 1]), np.array([1, 0, 1, 0]))
    assert found == pytest.approx(1.5 / (1 + 1 / math.log2(3)))


def test_the_collection_is_the_published_one(cranfield: Any) -> None:
    """By the baseline of others: BM25's nDCG@10 is .360."""
    if not cranfield.FOLDER.exists():
        pytest.skip(f"no data in {cranfield.FOLDER}")
    collection = cranfield.Collection.read()
    assert collection.relevant.shape == (225, 1400)
    assert [i + 1 for i, text in enumerate(collection.documents) if not text.strip()] == [471, 995]
    index = cranfield.Bm25(collection.documents)
    gains = [
        cranfield.ndcg(index.scores(question), relevant)
        for question, relevant in zip(collection.questions, collection.relevant, strict=True)
    ]
    assert np.mean(gains) == pytest.approx(0.360, abs=0.005)
