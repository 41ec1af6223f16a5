"""Cranfield: 1,400 abstracts of aerodynamics, 225 questions, and who judged what relevant; and BM25.

Source: Cleverdon, 1967, Aslib Proceedings 19:173 (the collection).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import ndcg_score

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "ranking" / "cranfield"
CUT = 10


@dataclass(frozen=True)
class Collection:
    """Texts by position, and `relevant[q, d]`, 1 where document d was judged relevant to question q."""

    documents: list[str]
    questions: list[str]
    relevant: np.ndarray

    @classmethod
    def read(cls, folder: Path = FOLDER) -> "Collection":
        """Judgements number questions by position; of their degrees all but -1 count as relevant."""
        documents = [f"{title} {text}" for title, text in _records(folder / "cran.all.1400")]
        questions = [text for _, text in _records(folder / "cran.qry")]
        relevant = np.zeros((len(questions), len(documents)), dtype=np.int8)
        for line in (folder / "cranqrel").read_text().splitlines():
            question, document, degree = map(int, line.split())
            relevant[question - 1, document - 1] = degree > 0
        return cls(documents, questions, relevant)


def _records(path: Path) -> list[tuple[str, str]]:
    """Title and text of each record. Abstracts begin with their title, which is taken off."""
    found = []
    for record in re.split(r"^\.I .*$", path.read_text(), flags=re.MULTILINE)[1:]:
        parts = dict(re.findall(r"^\.([TW])\n(.*?)(?=^\.[TABW]\n|\Z)", record, re.MULTILINE | re.DOTALL))
        title, text = (" ".join(parts.get(name, "").split()) for name in "TW")
        found.append((title, text.removeprefix(title).strip()))
    return found


class Bm25:
    """Scores of documents for a question, from an index that is made once.

    Source: Robertson and Zaragoza, 2009, Foundations and Trends in Information Retrieval 3:333, section 3,
    with the inverse document frequency of Lucene, which is never negative.
    """

    def __init__(self, documents: list[str], k1: float = 1.2, b: float = 0.75) -> None:
        self._words = CountVectorizer(stop_words="english")
        counts = sparse.csr_matrix(self._words.fit_transform(documents), dtype=np.float64)
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        found = np.asarray((counts > 0).sum(axis=0)).ravel()
        rarity = np.log(1 + (len(documents) - found + 0.5) / (found + 0.5))
        rows, columns = counts.nonzero()
        full = counts.data + k1 * (1 - b + b * lengths[rows] / lengths.mean())
        values = rarity[columns] * counts.data * (k1 + 1) / full
        self._index = sparse.csc_matrix((values, (rows, columns)), counts.shape)

    def scores(self, question: str) -> np.ndarray:
        """Of every document, shape (documents,)."""
        words = self._words.transform([question])
        return np.asarray(self._index[:, words.indices] @ words.data).ravel()


def ndcg(scores: np.ndarray, relevant: np.ndarray) -> float:
    """nDCG@10 of one question; equal scores share their gains."""
    return float(ndcg_score(relevant[None], scores[None], k=CUT))
