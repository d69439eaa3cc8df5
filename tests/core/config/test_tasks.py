from __future__ import annotations

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet as pyarrow_parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.config.samplers import Epochs, InOrder, Sampler
from agentlightning.config.schema import load_config
from agentlightning.config.tasks import load_tasks, task_line
from agentlightning.errors import ConfigError, TaskError
from agentlightning.training.job import job_of, keep_tasks, make_job
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import Task


def numbered(count: int) -> list[Task]:
    return load_tasks([{"id": f"t{k}"} for k in range(count)])


def test_a_dicts_id_is_the_tasks_id_and_else_its_content_is() -> None:
    first, second, third, fourth = load_tasks([{"id": "x", "q": 1}, {"id": 7}, {"b": 2, "a": 1}, "plain"])
    assert (first.id, second.id) == ("x", "7")
    assert first.input == {"id": "x", "q": 1}
    assert load_tasks([{"a": 1, "b": 2}])[0].id == third.id
    assert len({third.id, fourth.id, load_tasks(["other"])[0].id}) == 3


def test_ids_do_not_change_between_versions() -> None:
    assert load_tasks([{"a": 1, "ü": [True, None, 0.5]}])[0].id == "1ed2d5d6213073f8"


def test_duplicates_are_an_error_that_names_both() -> None:
    with pytest.raises(TaskError, match=r"task 0 and task 2 have the same id \('x'\)"):
        load_tasks([{"id": "x"}, {"id": "y"}, {"id": "x", "q": 1}])
    with pytest.raises(TaskError, match="task 0 and task 1 are the same task"):
        load_tasks(["q", "q"])
    with pytest.raises(TaskError, match=r"task 0 and task 1 .*; task 0 and task 2 .*; and 29 more\. Remove one of each pair") as error:
        load_tasks(["q"] * 50)
    assert str(error.value).count("are the same task") == 20


def test_a_jsonl_file_holds_a_task_a_line(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a"}\r\n\n"b\xc3\xbc"\n')
    assert [task.input for task in load_tasks(path)] == [{"id": "a"}, "bü"]
    assert load_tasks(str(path)) == load_tasks(path)


def test_a_json_file_holds_a_list(tmp_path: Path) -> None:
    path = tmp_path / "tasks.json"
    path.write_text('[{"id": "a"}, 3]')
    assert [task.input for task in load_tasks(path)] == [{"id": "a"}, 3]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"id": 1}\n\n{"q": \n', r"a\.jsonl, line 3: This is not JSON: .* \(column \d+\) in '\{\"q\":'\. Correct"),
        ("a.jsonl", b'{"id": 1}\n{"q": NaN}\n', r"line 2: This is not JSON: NaN is not a JSON number"),
        ("a.jsonl", b'{"id": 1}\n"\xff"\n', r"line 2: The file is not UTF-8 at byte 2"),
        ("a.jsonl", b'{"id": "x"}\n{"id": "x"}\n', r"a\.jsonl, line 1 and .*a\.jsonl, line 2 have the same id"),
        ("a.jsonl", b'{"id": [1]}\n', r"line 1: The id is \[1\]"),
        ("a.jsonl", b'{"q": 1e999}\n', r"line 1: at q: inf is not a JSON number"),
        ("a.jsonl", b"[" * 100_000, r"line 1: The value is nested too deeply"),
        ("a.jsonl", b" \n\n", r"a\.jsonl: The file has no tasks"),
        ("a.json", b"", r"a\.json: The file has no tasks"),
        ("a.json", b'{"a": 1}', r"a\.json: The file holds a dict. Use a list"),
        ("a.json", b'[1,\n"x"\n2]', r"a\.json: This is not JSON: .*line 3, column 1"),
        ("a.txt", b"q,a\n", r"a\.txt: The name ends with '\.txt'. Use \.jsonl"),
        ("a.tar.gz", b"", r"a\.tar\.gz: The name ends with '\.tar\.gz'. Use \.jsonl"),
        ("a", b"", r"The name ends with 'nothing'"),
        ("a.jsonl", b'[{"id": 1},\n {"id": 2}]\n', r"a\.jsonl: The file holds one list, not a value on each line. Name it \.json"),
        ("a.jsonl", b"[1, 2]", r"Name it \.json"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: The file is not complete gzip: .*Compress it again"),
        ("a.jsonl.gz", gzip.compress(b'{"id": 1}', mtime=0)[:-9], r"The file is not complete gzip"),
        ("a.csv", b"", r"a\.csv: The file has no tasks"),
        ("a.csv", b"q,a\n", r"a\.csv: The file has no tasks"),
        ("a.csv", b"q,q\n1,2\n", r"line 1: The header is \['q', 'q'\]. Give each column a name of its own"),
        ("a.csv", b"q,a\n1,2\n3\n", r"a\.csv, line 3: The row has 1 values, and the header 2"),
        ("a.csv", b'q,a\n"1,2\n', r"a\.csv, line 2: This is no row of a table: unexpected end of data"),
        ("a.tsv", b"q\ta\n\xff\t1\n", r"a\.tsv: The file is not UTF-8"),
        ("a.parquet", b"PAR1", r"a\.parquet: This is not a Parquet file"),
    ],
)
def test_a_broken_file_names_the_line_and_what_is_wrong(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=says):
        load_tasks(tmp_path / name)


def test_the_extension_names_the_format_in_any_case(tmp_path: Path) -> None:
    lines = b'{"q": "a", "n": "1"}\n{"q": "b, c", "n": ""}\n'
    table = 'q,n\na,1\n\n"b, c",\n'
    contents = {
        "a.JSONL": lines,
        "a.ndjson": lines,
        "a.jsonl.GZ": gzip.compress(lines),
        "a.Json": b'[{"q": "a", "n": "1"}, {"q": "b, c", "n": ""}]',
        "a.csv": b"\xef\xbb\xbf" + table.encode(),
        "a.CSV.gz": gzip.compress(table.encode()),
        "a.tsv": b"q\tn\r\na\t1\r\nb, c\t\r\n",
    }
    expected = load_tasks([{"q": "a", "n": "1"}, {"q": "b, c", "n": ""}])
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert load_tasks(tmp_path / name) == expected, name


def test_a_line_that_is_a_list_is_a_task_if_others_follow(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("[1]\n[2]\n")
    assert [task.input for task in load_tasks(tmp_path / "a.jsonl")] == [[1], [2]]


def test_a_row_of_a_parquet_file_is_a_task(tmp_path: Path) -> None:
    rows = [{"id": "a", "n": 1, "parts": [{"x": 0.5}]}, {"id": "b", "n": None, "parts": []}]
    pyarrow_parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.Parquet")
    assert [task.input for task in load_tasks(tmp_path / "a.Parquet")] == rows
    with pytest.raises(TaskError, match=r"gone\.parquet: The tasks file cannot be read"):
        load_tasks(tmp_path / "gone.parquet")
    dated = pyarrow.Table.from_pylist([{"at": datetime(2026, 1, 1, tzinfo=UTC)}])
    pyarrow_parquet.write_table(dated, tmp_path / "dated.parquet")
    with pytest.raises(TaskError, match=r"row 0: at at: .* is of type datetime"):
        load_tasks(tmp_path / "dated.parquet")


def test_a_data_set_is_read_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text('{"problem": "1+1", "answer": 2}\n')
    (tmp_path / "files" / "test.jsonl").write_text('{"problem": "1+2", "answer": 3}\n')
    made: Any = datasets.load_dataset(str(tmp_path / "files"))
    made.save_to_disk(tmp_path / "saved")
    for folder in ("files", "saved"):
        source = f"hf:{tmp_path / folder}"
        assert [task.input for task in load_tasks(source)] == [{"problem": "1+1", "answer": 2}]
        assert [task.input for task in load_tasks(f"{source}::test")] == [{"problem": "1+2", "answer": 3}]
        with pytest.raises(TaskError, match=r"::dev: The data set cannot be loaded: \w+: "):
            load_tasks(f"{source}::dev")
    renamed = load_tasks(f"hf:{tmp_path / 'saved'}::test", {"problem": "question"})
    assert renamed == load_tasks([{"question": "1+2", "answer": 3}])


@pytest.mark.parametrize("source", ["hf:", "hf::main:train", "hf:a:b:c:d"])
def test_a_data_set_needs_a_name(source: str) -> None:
    with pytest.raises(TaskError, match=r"names no data set\. Write hf:NAME:CONFIG:SPLIT"):
        load_tasks(source)


def test_a_folder_of_a_data_set_is_relative_to_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "c.toml").write_text('agent = "m:f"\ntasks = "hf:data::train"\neval_tasks = "hf:openai/gsm8k:main:test"\nmodel = "m"\n')
    config = load_config(tmp_path / "c.toml")
    assert (config.tasks, config.eval_tasks) == (f"hf:{tmp_path / 'data'}::train", "hf:openai/gsm8k:main:test")


def test_keys_are_renamed() -> None:
    renamed = load_tasks([{"problem": "p", "answer": 1}, "text"], {"problem": "question"})
    assert renamed == load_tasks([{"question": "p", "answer": 1}, "text"])
    assert load_tasks([{"a": 1, "b": 2}], {"a": "b", "b": "a"})[0].input == {"b": 1, "a": 2}
    with pytest.raises(TaskError, match=r"task 0: task_columns renames 'x', but the keys are 'a', 'b'. Name one of them"):
        load_tasks([{"a": 1, "b": 2}], {"x": "y"})
    with pytest.raises(TaskError, match="task_columns gives two keys of 'a', 'b' the same name"):
        load_tasks([{"a": 1, "b": 2}], {"a": "b"})


def test_a_run_keeps_renamed_tasks_of_values_and_files(tmp_path: Path) -> None:
    (tmp_path / "eval.csv").write_text("problem\n2\n")
    settings: dict[str, Any] = {"model": "m", "task_columns": {"problem": "question"}, "folder": str(tmp_path)}
    job = make_job("m:f", tasks=[{"problem": "1"}], eval_tasks=tmp_path / "eval.csv", **settings)
    folder = RunFolder(tmp_path)
    kept = job_of(keep_tasks(job, folder).config)
    assert (
        (kept.tasks, kept.eval_tasks) == (job.tasks, job.eval_tasks) == (load_tasks([{"question": "1"}]), load_tasks([{"question": "2"}]))
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"gone\.jsonl: The tasks file cannot be read: No such file"):
        load_tasks(str(tmp_path / "gone.jsonl"))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": [1, object()]}, r"task 0: at a\[1\]: <object"),
        ({1: 2}, r"The key 1 is not text"),
        ({"a": float("nan")}, r"at a: nan"),
        (Task("x", {1}), r"task 0: \{1\} is of type set"),
    ],
)
def test_a_value_that_json_cannot_hold_is_named(value: object, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        load_tasks([value])


def test_tasks_may_be_named_in_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks_module.py").write_text("some = ['a', 'b']\ndef more(): return (k for k in range(3))\nwrong = 'abc'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [t.input for t in load_tasks("my_tasks_module:some")] == ["a", "b"]
    assert [t.input for t in load_tasks("my_tasks_module:more")] == [0, 1, 2]
    with pytest.raises(TaskError, match=r"is a str\. Use a list"):
        load_tasks("my_tasks_module:wrong")
    with pytest.raises(ConfigError, match="Unknown name"):
        load_tasks("my_tasks_module:sone")


def test_tasks_come_back_from_a_file_with_the_ids_that_they_had(tmp_path: Path) -> None:
    tasks = [
        *load_tasks(["a", {"id": 7}, {"x": 1.5}]),
        Task("own", "a"),
        Task("other", {"id": "theirs"}),
        Task("odd", {"id": True}),
        *load_tasks([{"agl_task": {"id": "x", "input": 1}}]),
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(f"{task_line(task)}\n" for task in tasks))
    assert load_tasks(path) == tasks
    assert path.read_text().splitlines()[:3] == ['"a"', '{"id": 7}', '{"x": 1.5}']


def test_the_given_data_set_reads(request: pytest.FixtureRequest) -> None:
    path = request.config.rootpath.parent / "shared/data/gsm8k/dev.jsonl"
    if not path.is_file():
        pytest.skip("the GSM8K questions are not on this machine")
    assert all(task.id.startswith("gsm8k") for task in load_tasks(path))


@given(st.integers(1, 12), st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_epochs_take_every_task_once_and_never_twice_in_a_step(size: int, counts: list[int], seed: int) -> None:
    sampler = Epochs(numbered(size), seed)
    taken: list[str] = []
    for count in counts:
        step = [task.id for task in sampler.next(count)]
        assert len(step) == count
        assert count > size or len(set(step)) == count
        taken += step
    for start in range(0, len(taken), size):
        epoch = taken[start : start + size]
        assert max(Counter(epoch).values()) == 1


@pytest.mark.parametrize("cls", [Epochs, InOrder])
@given(counts=st.lists(st.integers(1, 7), min_size=2, max_size=8), cut=st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_a_restored_sampler_goes_on_as_if_it_had_never_stopped(cls: type[Epochs] | type[InOrder], counts: list[int], cut: int) -> None:
    one: Sampler = cls(numbered(5), 3)
    expected = [one.next(count) for count in counts]
    two = cls(numbered(5), 3)
    for count in counts[:cut]:
        two.next(count)
    three = cls(numbered(5), 99)
    three.restore(json.loads(json.dumps(two.state())))
    assert [three.next(count) for count in counts[cut:]] == expected[cut:]


def test_orders_differ_by_epoch_and_by_seed_and_repeat_by_seed() -> None:
    def order(seed: int) -> list[str]:
        return [task.id for task in Epochs(numbered(20), seed).next(20)]

    assert order(0) == order(0) != order(1)
    sampler = Epochs(numbered(20), 0)
    assert sampler.next(20) != sampler.next(20)


def test_in_order_starts_again_at_the_end() -> None:
    assert [task.id for task in InOrder(numbered(3)).next(5)] == ["t0", "t1", "t2", "t0", "t1"]


def test_a_sampler_refuses_no_tasks_no_count_and_the_state_of_other_tasks() -> None:
    for cls in (Epochs, InOrder):
        with pytest.raises(TaskError, match="no tasks"):
            cls([], 0)
        with pytest.raises(ConfigError, match="tasks_per_step is 0"):
            cls(numbered(2), 0).next(0)
        with pytest.raises(ConfigError, match="same tasks file"):
            cls(numbered(2), 0).restore(cls(numbered(3), 0).state())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("bad", r"tasks 'made_tasks:bad' raised ValueError: no rows \(made_tasks.py, line 2\)\. Fix it there"),
        ("arg", r"tasks 'made_tasks:arg' cannot be called without arguments: .*'path'"),
        ("late", r"tasks 'made_tasks:late' raised KeyError: 'x' \(made_tasks.py, line 7\)"),
    ],
)
def test_a_function_of_tasks_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    (tmp_path / "made_tasks.py").write_text(
        "def bad():\n    raise ValueError('no rows')\ndef arg(path):\n    return [path]\n"
        "def late():\n    yield {'a': 1}\n    raise KeyError('x')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match=says):
        load_tasks(f"made_tasks:{name}")


def test_a_table_with_another_separator_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tasks.csv").write_text("q;r\n1;2\n")
    with pytest.raises(TaskError, match=r"line 1: The header is one column, 'q;r'\. Separate the columns with ','"):
        load_tasks(tmp_path / "tasks.csv")
