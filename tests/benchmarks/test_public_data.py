"""Public data sets by name: fetched once from a server, as the files that the benchmarks read."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agentlightning.errors import ConfigError
from agentlightning_benchmarks.bench import public
from agentlightning_benchmarks.bench.public import NAMES, SOURCES, data_folder
from agentlightning_benchmarks.math.tasks import load as load_math
from agentlightning_benchmarks.rag.tasks import load as load_rag

PROBLEM = {"question": "Ann has 2 pens and buys 3. How many?", "answer": "She has 2+3=<<2+3=5>>5 pens.\n#### 1,005"}


def multi_hop(id: str, *names: str) -> dict[str, Any]:
    paragraphs = [{"idx": i, "title": name, "paragraph_text": f"{name} is here.", "is_supporting": i > 0} for i, name in enumerate(names)]
    hops = [{"id": 1, "question": "Oslo >> river", "answer": "Aker", "paragraph_support_idx": 1}]
    return {
        "id": id, "paragraphs": paragraphs, "question": "Which river?", "question_decomposition": hops, "answer": "Aker",
        "answer_aliases": ["Akerselva"], "answerable": True,
    }  # fmt: skip


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that stands for where the data sets lie."""
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "server"
    folder.mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    for name, (_, files) in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, (f"http://127.0.0.1:{http.server_port}/", files))
    yield folder
    http.shutdown()
    http.server_close()


def put(path: Path, *rows: Any) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_gsm8k_is_fetched_once_and_read(server: Path) -> None:
    put(server / "train.jsonl", PROBLEM, {**PROBLEM, "answer": "...\n#### -7"})
    put(server / "test.jsonl", PROBLEM)
    folder = data_folder("math", Path("gsm8k"))
    train, test = load_math(folder)
    assert [(task["id"], task["answer"]) for task in (*train, *test)] == [
        ("train-0000", "1,005"),
        ("train-0001", "-7"),
        ("test-0000", "1,005"),
    ]
    assert sorted(each.name for each in folder.parent.iterdir()) == ["gsm8k"], "nothing is left beside it"
    (server / "train.jsonl").unlink()
    assert data_folder("math", Path("gsm8k")) == folder


def test_musique_brings_its_corpus(server: Path) -> None:
    put(server / "musique_ans_v1.0_train.jsonl", multi_hop("2hop__1", "Oslo", "Aker"), multi_hop("2hop__2", "Oslo", "Bergen"))
    put(server / "musique_ans_v1.0_dev.jsonl", multi_hop("2hop__3", "Oslo", "Aker"))
    folder = data_folder("rag", Path("musique"))
    train, test = load_rag(folder)
    assert ([task["id"] for task in train], [task["id"] for task in test]) == (["2hop__1", "2hop__2"], ["2hop__3"])
    assert test[0]["answer_aliases"] == ["Akerselva"]
    assert test[0]["decomposition"] == [{"question": "Oslo >> river", "answer": "Aker"}]
    corpus = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    assert [(each["id"], each["title"]) for each in corpus] == [("m000000", "Oslo"), ("m000001", "Aker"), ("m000002", "Bergen")]
    assert [json.loads(line)["supporting_ids"] for line in (folder / "train.jsonl").read_text().splitlines()] == [["m000001"], ["m000002"]]


def test_a_folder_comes_before_a_name(server: Path) -> None:
    Path("gsm8k").mkdir()
    assert data_folder("math", Path("gsm8k")) == Path("gsm8k").resolve()
    assert data_folder("math", Path("musique")) == Path("musique").resolve(), "another benchmark's name is a folder that is not there"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"http://127.0.0.1:\d+/train.jsonl cannot be downloaded: .*404.*--data DIR"),
        (b'{"question": "x", "answer": "5"}\n', "are not in the format of gsm8k: ValueError: train row 0"),
        (b'{"question": "x"}\n', "are not in the format of gsm8k: KeyError: 'answer'"),
        (b"<html>", "are not in the format of gsm8k: JSONDecodeError"),
        (b"\xff\xfe", "are not in the format of gsm8k: UnicodeDecodeError"),
    ],
)
def test_what_cannot_be_fetched_or_read_is_said_and_leaves_nothing(server: Path, content: bytes | None, said: str) -> None:
    put(server / "test.jsonl", PROBLEM)
    if content is not None:
        (server / "train.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        data_folder("math", Path("gsm8k"))
    assert list((server.parent / "cache" / "data").iterdir()) == []


def test_without_a_network_the_way_out_is_said(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "gsm8k", ("http://127.0.0.1:9/", ("train.jsonl", "test.jsonl")))
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9/train.jsonl cannot be downloaded: .*Connect to the network once"):
        data_folder("math", Path("gsm8k"))


def test_spider_says_where_its_databases_are() -> None:
    with pytest.raises(ConfigError, match=r"yale-lily.*train_spider\.json, dev\.json, and database/"):
        data_folder("text-to-sql", Path("spider"))


def test_every_benchmark_has_a_name_and_every_source_a_converter() -> None:
    assert {name for name in NAMES.values() if name != "spider"} == SOURCES.keys() == public.CONVERTERS.keys()
