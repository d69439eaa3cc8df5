"""The JSON behind the views, on a real run."""

from __future__ import annotations

import asyncio
import json
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_world import TASKS, client, fill, served

from agentlightning.errors import ConfigError, StoreError
from agentlightning.page.library import Library, find_library
from agentlightning.page.rollouts import Filters, page
from agentlightning.page.server import serve_page
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def api(link: str) -> Iterator[httpx.Client]:
    with client(link) as opened:
        yield opened


@pytest.fixture
def run(world: Path) -> RunFolder:
    return RunFolder.latest(world / "runs")


def get(api: httpx.Client, name: str, **query: Any) -> Any:
    answer = api.get(f"/view/api/{name}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_list_has_each_run_with_its_eval_rewards_before_and_after(api: httpx.Client, run: RunFolder) -> None:
    answer = get(api, "runs")
    (entry,) = answer["runs"]
    rows = read_metrics(run.path)
    assert (entry["name"], entry["title"], entry["steps"], entry["planned"]) == (run.name, "letters", 2, 2)
    assert (entry["state"], entry["running"]) == ("finished", False)
    assert entry["eval"]["greedy"]["before"] == rows[0]["eval.greedy"]
    assert entry["eval"]["greedy"]["after"] == rows[-1]["eval.greedy"]
    assert [store["name"] for store in answer["stores"]] == ["agl.db"]


def test_a_run_has_its_curves_and_a_number_that_was_not_measured_is_null(api: httpx.Client, run: RunFolder) -> None:
    columns = get(api, "run", source=run.name)["columns"]
    rows = read_metrics(run.path)
    assert columns["step"] == [0, 1, 2]
    assert columns["reward"] == [row.get("reward") for row in rows]
    assert columns["reward"][0] is None
    for name in ("entropy", "grad_norm", "mismatch_kl", "tokens_per_second", "signal", "eval.sampled", "seconds.rollouts"):
        assert any(value is not None for value in columns[name]), name


def test_settings_tell_what_differs_from_the_defaults(api: httpx.Client, run: RunFolder) -> None:
    sections = {
        section["title"]: {entry["name"]: entry for entry in section["settings"]} for section in get(api, "settings", source=run.name)
    }
    assert (sections["[eval]"]["every"]["value"], sections["[eval]"]["every"]["default"]) == ("1", "5")
    assert sections["[eval]"]["every"]["differs"]
    assert not sections["[eval]"]["greedy"]["differs"]
    assert (sections["[trainer]"]["lr"]["value"], sections["[trainer]"]["lr"]["differs"]) == ("0.001", True)
    config = tomllib.loads(run.config.read_text())
    assert set(sections["run"]) == {name for name, value in config.items() if not isinstance(value, dict)}


def test_rollouts_come_newest_first_a_page_at_a_time_and_each_once(api: httpx.Client, run: RunFolder) -> None:
    ids, cursor = list[str](), ""
    while cursor is not None:
        answer = get(api, "rollouts", source=run.name, cursor=cursor)
        ids += [row["id"] for row in answer["rows"]]
        cursor = answer["cursor"]
    store = open_store(run.store_address)

    async def added() -> list[str]:
        states, _ = await store.list(limit=1000)
        await store.close()
        return [state.rollout.id for state in states]

    assert ids == asyncio.run(added())[::-1]
    assert len(ids) == 2 * 8 + 3 * 2 * len(TASKS)


def rows_of(api: httpx.Client, run: RunFolder, **query: Any) -> list[dict[str, Any]]:
    rows, cursor = list[dict[str, Any]](), ""
    while cursor is not None:
        answer = get(api, "rollouts", source=run.name, cursor=cursor, **query)
        rows += answer["rows"]
        cursor = answer["cursor"]
    return rows


def test_each_filter_gives_exactly_the_rollouts_that_fit(api: httpx.Client, run: RunFolder) -> None:
    every = rows_of(api, run)

    def expect(fits: Any, **query: Any) -> None:
        expected = [row["id"] for row in every if fits(row)]
        assert [row["id"] for row in rows_of(api, run, **query)] == expected, query
        assert 0 < len(expected) < len(every), query

    expect(lambda row: row["mode"] == "train", mode="train")
    expect(lambda row: row["step"] == 1, step=1)
    expect(lambda row: row["step"] == 2 and row["mode"] == "train", step=2, mode="train")
    expect(lambda row: row["sampling"] == "greedy", sampling="greedy")
    expect(lambda row: row["group"] == "train-1-0", group="train-1-0")
    expect(lambda row: row["trained"] > 0, trained="yes")
    expect(lambda row: row["trained"] == 0, trained="no")
    middle = sorted(row["reward"] for row in every)[len(every) // 2]
    expect(lambda row: row["reward"] >= middle, lowest=middle)
    expect(lambda row: row["reward"] < middle, highest=middle - 1e-9)
    expect(lambda row: row["task"] in ("t0",), text="ABC")
    assert rows_of(api, run, text="nobody wrote this") == []


def test_a_wrong_filter_names_the_choices(api: httpx.Client, run: RunFolder) -> None:
    answer = api.get("/view/api/rollouts", params={"source": run.name, "mode": "training"})
    assert (answer.status_code, answer.json()["error"]) == (400, "mode is 'training'. Use one of train, eval, production.")
    with pytest.raises(ConfigError, match="Use a number"):
        Filters.parse({"step": "two"})


def test_a_rollout_has_its_calls_with_advantages_and_every_token_is_accounted_for(api: httpx.Client, run: RunFolder) -> None:
    row = rows_of(api, run, mode="train", trained="yes")[0]
    detail = get(api, "rollout", source=run.name, id=row["id"])
    (attempt,) = detail["attempts"]
    calls = [node for node in attempt["nodes"] if node["kind"] == "call"]
    assert (len(calls), detail["row"]["calls"]) == (2, 2)
    learned = run.read_batch(row["step"])[row["id"]]
    assert [call["replies"][0]["advantage"] for call in calls] == list(learned.advantages)
    assert row["trained"] + sum(tokens for _, tokens in row["excluded"]) == row["tokens"]


def test_a_call_shows_what_the_framework_sent_and_the_reply(api: httpx.Client, run: RunFolder) -> None:
    row = rows_of(api, run, mode="train")[0]
    second = get(api, "rollout", source=run.name, id=row["id"])["attempts"][0]["nodes"][1]
    answer = get(api, "call", source=run.name, id=row["id"], call=second["id"])
    assert [message["role"] for message in answer["messages"]] == ["system", "user", "assistant", "user"]
    assert answer["messages"][0]["content"] == "Write letters."
    assert answer["tools"][0]["function"]["name"] == "lookup"
    assert answer["replies"][0]["message"]["role"] == "assistant"


def test_tokens_are_exactly_the_recorded_ones(api: httpx.Client, run: RunFolder) -> None:
    row = rows_of(api, run, mode="train")[0]
    store = open_store(run.store_address)

    async def read() -> Any:
        _, [records] = await store.read(row["id"])
        await store.close()
        return records.completions[0]

    completion = asyncio.run(read())
    answer = get(api, "tokens", source=run.name, id=row["id"], reply=completion.id)
    assert answer["response"]["ids"] == completion.response_ids.tolist()
    assert answer["prompt"]["ids"] == completion.prompt_ids.tolist()
    assert answer["logprobs"] == pytest.approx(completion.logprobs.tolist())
    assert "Write letters." in "".join(answer["prompt"]["texts"])


def test_the_mismatch_of_each_token_agrees_with_that_of_the_step_and_is_missing_where_nothing_was_trained(
    api: httpx.Client, run: RunFolder
) -> None:
    gaps = list[float]()
    for row in rows_of(api, run, mode="train", step=2):
        detail = get(api, "rollout", source=run.name, id=row["id"])
        for call in detail["attempts"][0]["nodes"]:
            (reply,) = call["replies"]
            answer = get(api, "tokens", source=run.name, id=row["id"], reply=reply["id"])
            assert (answer["trainer"] is not None) == (row["trained"] > 0)
            if answer["trainer"] is not None:
                assert answer["versions"] == [answer["trainer"]["version"]] * len(answer["versions"])
                gaps += [abs(ours - theirs) for ours, theirs in zip(answer["trainer"]["logprobs"], answer["logprobs"], strict=True)]
    assert sum(gaps) / len(gaps) == pytest.approx(read_metrics(run.path)[2]["mismatch_abs"], rel=1e-3, abs=1e-9)
    row = rows_of(api, run, mode="eval")[0]
    reply = get(api, "rollout", source=run.name, id=row["id"])["attempts"][0]["nodes"][0]["replies"][0]
    assert get(api, "tokens", source=run.name, id=row["id"], reply=reply["id"])["trainer"] is None


def test_a_group_has_its_rollouts_and_where_their_replies_part(api: httpx.Client, run: RunFolder) -> None:
    answer = get(api, "group", source=run.name, group="train-0-0")
    assert [entry["row"]["index"] for entry in answer["rollouts"]] == [0, 1, 2, 3]
    texts = ["".join(reply["text"] for reply in entry["replies"]) for entry in answer["rollouts"]]
    assert len({text[: answer["common"]] for text in texts}) == 1
    assert len({text[: answer["common"] + 1] for text in texts}) > 1


def test_a_comparison_is_paired_by_task_and_each_task_is_one_click_from_its_rollouts(api: httpx.Client, run: RunFolder) -> None:
    answer = get(api, "compare", a=run.name)
    greedy = answer["kinds"]["greedy"]
    assert len(greedy["tasks"]) == len(TASKS)
    assert greedy["interval"]["low"] <= greedy["interval"]["mean"] <= greedy["interval"]["high"]
    task, before, after = greedy["tasks"][0]
    for side, reward in zip(answer["sides"], (before, after), strict=True):
        result = get(api, "eval", source=side["run"], step=side["step"], kind="greedy")
        assert {name: entry["start"] for name, entry in result["tasks"].items()} == {entry["id"]: entry["text"] for entry in TASKS}
        (only,) = result["tasks"][task]["ids"]
        row = get(api, "rollout", source=result["run"], id=only)["row"]
        assert (row["task"], row["reward"], row["sampling"]) == (task, reward, "greedy")


def test_a_stream_sends_the_view_of_a_run_at_once(api: httpx.Client, run: RunFolder) -> None:
    with api.stream("GET", "/view/api/events", params={"source": run.name}) as answer:
        line = next(line for line in answer.iter_lines() if line)
    assert json.loads(line.removeprefix("data: "))["run"]["name"] == run.name


def test_ctrl_c_ends_the_server_at_once_while_a_page_is_open(world: Path, run: RunFolder) -> None:
    with ExitStack() as stack:
        with served(world) as link:
            opened = stack.enter_context(client(link))
            answer = stack.enter_context(opened.stream("GET", "/view/api/events", params={"source": run.name}))
            lines = answer.iter_lines()  # kept, because its end would close the stream
            next(lines)
            began = time.monotonic()
        assert time.monotonic() - began < 4  # the server would wait 5 seconds for the stream


async def test_a_search_ends_after_a_moment_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"sqlite:{tmp_path / 'many.db'}")
    rollouts = await fill(store, 120, text="plain")
    await store.close()
    monkeypatch.setattr("agentlightning.page.rollouts.PATIENCE", 0.0)
    library = find_library(str(tmp_path / "many.db"))
    source = await library.source(library.start)
    ids, cursor, searched = list[str](), "", list[int]()
    while cursor is not None:
        answer = await page(source, Filters(text="plain 1"), cursor)
        ids += [row["id"] for row in answer["rows"]]
        cursor = answer["cursor"]
        searched.append(answer["searched"])
    await library.close()
    assert ids == [rollout.id for rollout in reversed(rollouts) if "plain 1" in rollout.task.input["question"]]
    assert sum(searched) == 120
    assert max(searched) <= 50


def test_the_argument_names_a_run_a_folder_of_runs_or_a_store(world: Path, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.delenv("AGL_STORE", raising=False)
    assert (list(find_library(None).runs()), list(find_library(None).stores)) == ([run.name], ["agl.db"])
    assert (find_library("latest").start, find_library(run.name).start) == (run.name, run.name)
    assert list(find_library("runs").runs()) == [run.name]
    library = find_library("agl.db")
    assert (library.folder, library.start) == (None, "agl.db")
    (world / "empty").mkdir(exist_ok=True)
    with pytest.raises(ConfigError, match="has no runs"):
        find_library("empty")
    assert Library(None).runs() == {}


def test_a_file_that_is_no_store_is_refused_before_the_page_is_served(tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_text("no database at all, but some text " * 40)
    with pytest.raises(StoreError, match=r"junk\.db"):
        serve_page(find_library(str(tmp_path / "junk.db")), host="127.0.0.1", port=0, token="t", ready=pytest.fail)
