"""The retrieval benchmark's corpus and its search: clear errors, an answer to every query, an index made once."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.errors import ConfigError
from agentlightning_benchmarks.rag import index as index_module
from agentlightning_benchmarks.rag.index import Index, Passage, open_index, words_of
from agentlightning_benchmarks.rag.tasks import load

PASSAGES = [
    {"id": "a", "title": "Halda Works", "text": "Halda Works was founded by Anna Voller."},
    {"id": "b", "title": "Anna Voller", "text": "Anna Voller is a painter from Kesby."},
    {"id": "c", "title": "Kesby", "text": "A town on the river Orel. Café Zürich is its only café."},
]
QUESTION = {"id": "q1", "question": "Who founded Halda Works?", "answer": "Anna Voller", "answer_aliases": [], "supporting_ids": ["a"]}


def write(path: Path, values: list[Any]) -> Path:
    path.write_text("".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def small(tmp_path: Path) -> Index:
    return open_index(str(write(tmp_path / "corpus.jsonl", PASSAGES)))


def ids(found: list[Passage]) -> list[str]:
    return [passage.id for passage in found]


def test_a_search_finds_the_passage_that_a_title_names(small: Index) -> None:
    assert ids(small.search("Anna Voller", 1)) == ["b"]
    assert ids(small.search("anna VOLLER?", 3)) == ["b", "a"]
    assert ids(small.search("zurich", 3)) == ["c"], "accents do not matter"


def test_a_passage_without_a_word_of_the_query_is_not_found(small: Index) -> None:
    assert small.search("xylophone", 3) == []
    assert small.search("the of and", 3) == [], "words that every text has"


def test_equally_good_passages_come_in_the_order_of_the_corpus(tmp_path: Path) -> None:
    texts = ["one two three", "two two two"] * 100
    passages = [{"id": str(number), "title": "", "text": text} for number, text in enumerate(texts)]
    found = open_index(str(write(tmp_path / "same.jsonl", passages))).search("two", 150)
    assert ids(found) == [str(number) for number in [*range(1, 200, 2), *range(0, 100, 2)]]


def test_only_the_beginning_of_a_huge_query_is_looked_at(small: Index) -> None:
    assert small.search("x " * 2000 + "Kesby", 3) == []


@given(st.text(alphabet=st.characters()))
def test_every_query_gets_an_answer(query: str) -> None:
    passages = [Passage(each["id"], each["title"], each["text"]) for each in PASSAGES]
    import bm25s

    scorer = bm25s.BM25()
    scorer.index([words_of(f"{each.title} {each.text}") for each in passages], create_empty_token=False, show_progress=False)
    assert len(Index(passages, scorer).search(query, 2)) <= 2


@pytest.mark.parametrize("query", ["", " ", "\0", "founded " * 500_000, "(" * 9999, "%s {} \\d+ OR *", "\ud800", "ﷺ" * 9999, "../../etc"])
def test_strange_queries_get_an_answer(small: Index, query: str) -> None:
    assert len(small.search(query, 10)) <= 3


def test_a_passage_is_shown_in_one_line_cut_and_with_its_title() -> None:
    passage = Passage("c", "Kesby", "A town\non the  river Orel.")
    assert passage.shown(40) == "Kesby: A town on the river Orel."
    assert passage.shown(3) == "Kesby: A town …"
    assert Passage("b", "Anna Voller", "Anna Voller is a painter.").shown(40) == "Anna Voller is a painter."
    assert Passage("d", "", "No title.").shown(2) == "No title."


def test_the_index_is_made_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0
    build = index_module._build

    def counted(*arguments: Any) -> None:
        nonlocal made
        made += 1
        build(*arguments)

    monkeypatch.setattr(index_module, "_build", counted)
    first = open_index(str(write(tmp_path / "one.jsonl", PASSAGES)))
    again = open_index(str(write(tmp_path / "two.jsonl", PASSAGES)))
    assert made == 1
    assert ids(first.search("Kesby", 3)) == ids(again.search("Kesby", 3)) != []
    open_index(str(write(tmp_path / "three.jsonl", PASSAGES[:2])))
    assert made == 2


def test_many_may_make_and_search_the_index_at_once(tmp_path: Path) -> None:
    path = str(write(tmp_path / "corpus.jsonl", PASSAGES))
    opened = index_module.open_index.__wrapped__  # past the cache of the process
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: ids(opened(path).search("Anna Voller", 2)), range(16)))
    assert found == [["b", "a"]] * 16
    folders = [each.name for each in (tmp_path / "cache" / "rag").iterdir()]
    assert len(folders) == 1
    assert folders[0].startswith("index-")


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    path = str(write(tmp_path / "corpus.jsonl", PASSAGES))
    open_index(path)
    folder = next((tmp_path / "cache" / "rag").glob("index-*"))
    (folder / "data.csc.index.npy").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"{folder.name}.*Delete the folder"):
        index_module.open_index.__wrapped__(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "corpus.jsonl: the file is empty. Expected passages"),
        (["", " "], "corpus.jsonl: the file is empty"),
        ([PASSAGES[0], "", "{oops"], r"corpus.jsonl, line 3: not JSON: .* \(column 2\): {oops"),
        ([PASSAGES[0], [1, 2]], r"corpus.jsonl, line 2: \[1, 2\]. Expected a JSON object"),
        ([{"title": "t", "text": "x"}], "line 1: 'id' is missing"),
        ([{"id": "a", "title": "t", "text": ""}], "line 1: 'text' is ''"),
        ([{"id": "a", "title": 7, "text": "x"}], "line 1: 'title' is 7"),
        ([{"id": "a", "title": "t", "text": "x\ud800y"}], "line 1: 'text' contains half a character"),
        ([PASSAGES[0], PASSAGES[1], PASSAGES[0]], r"line 3: the id 'a' also occurs in .*corpus.jsonl, line 1"),
        ([{"id": "a", "title": "", "text": "the !!!"}], "corpus.jsonl: no passage has a searchable word"),
    ],
)
def test_a_wrong_corpus_is_an_error_that_names_file_and_line(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_index(str(write(tmp_path / "corpus.jsonl", lines)))


def test_a_corpus_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"id": "a", "title": "t", "text": "\xff"}\n')
    with pytest.raises(ConfigError, match="line 1: not UTF-8 at byte 36"):
        open_index(str(path))
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PASSAGES[0]).encode())
    assert len(open_index(str(path)).passages) == 1, "an editor may have put a byte-order mark"
    with pytest.raises(ConfigError, match=r"gone.jsonl: cannot be read: No such file"):
        open_index(str(tmp_path / "gone.jsonl"))


def folder(path: Path, *, train: list[Any], dev: list[Any], corpus: list[Any]) -> Path:
    for name, values in {"train": train, "dev": dev, "corpus": corpus}.items():
        write(path / f"{name}.jsonl", values)
    return path


def test_real_files_become_tasks(tmp_path: Path) -> None:
    more = {"decomposition": [{"question": "Halda Works >> founder", "answer": "Anna Voller"}], "answer_aliases": ["Voller"]}
    data = folder(tmp_path, train=[QUESTION], dev=[{**QUESTION, "id": "q2", **more}], corpus=PASSAGES)
    train, test = load(data)
    assert [task["id"] for task in train + test] == ["q1", "q2"]
    assert test[0]["decomposition"] == more["decomposition"]
    assert test[0]["answer_aliases"] == ["Voller"]
    assert train[0]["corpus"]["path"] == str(data / "corpus.jsonl")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"supporting_ids": ["a", "zz"]}, "train.jsonl, line 2: 'supporting_ids' has 'zz', which is not in the corpus"),
        ({"id": "q1"}, r"train.jsonl, line 2: the id 'q1' also occurs in .*train.jsonl, line 1"),
        ({"answer": None}, "train.jsonl, line 2: 'answer' is None"),
        ({"answer_aliases": "Voller"}, "train.jsonl, line 2: 'answer_aliases' is 'Voller'. Expected a list"),
        ({"answer_aliases": [3]}, r"train.jsonl, line 2: 'answer_aliases\[0\]' is 3"),
        ({"decomposition": [{"question": "x"}]}, r"line 2: 'decomposition\[0\]': 'answer' is missing"),
        ({"decomposition": ["x"]}, r"line 2: 'decomposition\[0\]' is 'x'. Expected an object"),
    ],
)
def test_a_wrong_question_is_an_error_that_names_file_and_line(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    data = folder(tmp_path, train=[QUESTION, {**QUESTION, "id": "q2", **wrong}], dev=[QUESTION], corpus=PASSAGES)
    with pytest.raises(ConfigError, match=message):
        load(data)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: this folder does not exist\. Expected one with train.jsonl, dev.jsonl and"):
        load(tmp_path / "nowhere")
    data = folder(tmp_path, train=[QUESTION], dev=[QUESTION], corpus=PASSAGES)
    for name in ("train.jsonl", "dev.jsonl", "corpus.jsonl"):
        kept = (data / name).read_bytes()
        (data / name).unlink()
        with pytest.raises(ConfigError, match=f"{name}: this file does not exist"):
            load(data)
        (data / name).write_bytes(kept)
    (data / "dev.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"dev.jsonl: the file is empty. Expected questions"):
        load(data)
