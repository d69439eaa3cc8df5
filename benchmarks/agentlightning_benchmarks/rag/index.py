"""A corpus of passages and its BM25 index.

The index is built once per corpus content and cached. Many rollouts read the same index concurrently, from threads and processes. An open
index is never written, and a cached folder is always complete.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN

from agentlightning.config.models import cache_folder
from agentlightning.errors import ConfigError
from agentlightning.types import new_id
from agentlightning_benchmarks.rag.files import read_lines

MAX_QUERY = 2000
"""Maximum number of characters read from a query."""
RULES = "words-1"
"""Changes whenever `words_of` or the indexed text changes, so that old indexes are not reused."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One entry of a corpus."""

    id: str
    title: str
    text: str

    def shown(self, words: int) -> str:
        """Return the passage as one line of at most `words` words. The title comes first, before a text that does not begin with it."""
        text = " ".join(self.text.split())
        line = text if not self.title or text.startswith(self.title) else f"{self.title}: {text}"
        parts = line.split(" ", words)
        return line if len(parts) <= words else " ".join(parts[:words]) + " …"


class Index:
    """A searchable set of passages."""

    def __init__(self, passages: Sequence[Passage], scorer: Any) -> None:
        self.passages = tuple(passages)
        self._scorer = scorer

    def search(self, query: str, top_k: int) -> list[Passage]:
        """Return up to `top_k` passages that share a word with the query, best first. Ties follow the corpus order."""
        indexed = [word for word in words_of(query[:MAX_QUERY]) if word in self._scorer.vocab_dict]
        if not indexed:
            return []
        scores = self._scorer.get_scores(indexed)  # (passages,)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [self.passages[i] for i in best if scores[i] > 0]


@lru_cache(maxsize=4)
def open_index(corpus: str) -> Index:
    """Return the index of a corpus file, from the cache if possible.

    Each line of the file is `{"id": ..., "title": ..., "text": ...}` with a unique id. Raises a `ConfigError` that names the file and line.
    """
    path = Path(corpus)
    passages = _passages(path)
    digest = hashlib.sha256(f"{RULES} bm25s {bm25s.__version__}\n".encode() + path.read_bytes()).hexdigest()[:24]
    folder = cache_folder() / "rag" / f"index-{digest}"
    if not folder.is_dir():
        _build(path, passages, folder)
    try:
        scorer = bm25s.BM25.load(folder, mmap=True, show_progress=False)
    except (OSError, ValueError, KeyError, EOFError, TypeError) as error:
        raise ConfigError(f"{folder}: this index of {path} is damaged: {error}. Delete the folder. The next run rebuilds it.") from error
    return Index(passages, scorer)


def words_of(text: str) -> list[str]:
    """Return the search terms of a text: lowercase, without accents or stop words."""
    plain = "".join(character for character in unicodedata.normalize("NFKD", text) if not unicodedata.combining(character))
    return [word for word in re.findall(r"\w+", plain.lower()) if word not in STOPWORDS_EN]


def _passages(path: Path) -> list[Passage]:
    passages: list[Passage] = []
    places: dict[str, str] = {}
    for line in read_lines(path, "passages with id, title and text"):
        passage = Passage(line.text("id"), line.text("title") if line.fields.get("title") else "", line.text("text"))
        if passage.id in places:
            raise ConfigError(f"{line.where}: the id {passage.id!r} also occurs in {places[passage.id]}. Use unique ids.")
        places[passage.id] = line.where
        passages.append(passage)
    return passages


def _build(path: Path, passages: Sequence[Passage], folder: Path) -> None:
    """Build the index in a temporary folder and rename it, so that an interrupted build never looks complete."""
    from tqdm import tqdm

    seen = sys.stderr.isatty()
    texts = tqdm(passages, desc=f"reading {path.name}", disable=not seen, leave=False)
    words = [words_of(f"{passage.title} {passage.text}") for passage in texts]
    if not any(words):
        raise ConfigError(f"{path}: no passage has a searchable word. Add words other than stop words.")
    scorer = bm25s.BM25()
    scorer.index(words, create_empty_token=False, show_progress=seen)
    part = folder.with_name(f".{folder.name}.{new_id()}")
    part.mkdir(parents=True)
    try:
        scorer.save(part, show_progress=False)
        try:
            part.rename(folder)
        except OSError:  # another process finished first, with the same index
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
