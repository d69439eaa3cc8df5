"""The playground of `agl serve RUN`: the policy and its model before training, asked through the gateway and never recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_world import HOSTILE, LOOKUP, TASKS, client, fill, nameless, open_page, run_async, served_run, solve

import agentlightning as agl
from agentlightning.stores.common import open_store
from agentlightning.training.run_folder import RunFolder

QUESTION = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "temperature": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: str) -> Path:
    """A folder with one trained run, and a store with hostile text."""
    folder = tmp_path_factory.mktemp("playground")
    algorithm = agl.LightningRL(group_size=8)  # some rewards of a group differ, so that the step trains
    agl.train(
        solve, tasks=TASKS[:2], model=tiny, folder=folder / "runs", name="letters", steps=1, tasks_per_step=2, algorithm=algorithm,
        trainer={"name": "torch", "lr": 1e-2}, progress=False,
    )  # fmt: skip

    async def record() -> None:
        store = open_store(f"sqlite:{folder / 'agl.db'}")
        await fill(store, 1)
        await store.close()

    run_async(record())
    return folder


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[str]:
    with served_run(folder, "latest") as printed:
        yield printed


@pytest.fixture
def api(serving: str) -> Iterator[httpx.Client]:
    with client(serving) as opened:
        yield opened


def ask(api: httpx.Client, side: str, **more: Any) -> httpx.Response:
    model = api.get("/view/api/playground").json()["served"]["model"]
    return api.post(f"/view/api/ask/{side}", json={"model": model, **QUESTION, **more})


def recorded(folder: Path) -> int:
    async def count() -> int:
        store = open_store(f"sqlite:{folder / 'agl.db'}")
        states, _ = await store.list(limit=100)
        await store.close()
        return len(states)

    return run_async(count())


def test_the_policy_and_its_model_before_training_answer_and_nothing_is_recorded(api: httpx.Client, folder: Path) -> None:
    before = recorded(folder)
    facts = api.get("/view/api/playground").json()
    assert (facts["served"]["version"], facts["served"]["base"], facts["how"]) == (1, True, None)
    replies = [ask(api, side, temperature=0, max_tokens=16, seed=1).json() for side in ("policy", "base")]
    assert [reply["usage"]["prompt_tokens"] for reply in replies] == [replies[0]["usage"]["prompt_tokens"]] * 2
    assert replies[0]["choices"][0]["message"]["content"] != replies[1]["choices"][0]["message"]["content"]
    assert api.get("/view/api/playground").json()["served"]["loaded"]
    assert recorded(folder) == before


def test_a_stream_comes_in_pieces_with_the_headers_of_the_page(api: httpx.Client) -> None:
    model = api.get("/view/api/playground").json()["served"]["model"]
    with api.stream("POST", "/view/api/ask/policy", json={"model": model, **QUESTION, "stream": True}) as answer:
        events = [line for line in answer.iter_lines() if line]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert json.loads(events[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
    assert events[-1] == "data: [DONE]"


def test_an_error_of_the_gateway_is_passed_on(api: httpx.Client) -> None:
    answer = ask(api, "policy", temperature=-1)
    assert answer.status_code == 400
    assert "temperature" in answer.json()["error"]["message"]


def test_only_the_page_itself_with_its_token_may_ask(serving: str, api: httpx.Client) -> None:
    assert api.post("/view/api/ask/nobody", json=QUESTION).status_code == 404
    assert api.post("/view/api/ask/policy", json=QUESTION, headers={"sec-fetch-site": "cross-site"}).status_code == 401
    with client(serving, token=None) as stranger:
        assert stranger.post("/view/api/ask/policy", json=QUESTION).status_code == 401
        assert stranger.post("/view/api/ask/base", json=QUESTION).status_code == 401


def test_the_form_starts_from_the_latest_call_of_the_agent(api: httpx.Client, folder: Path) -> None:
    run = RunFolder.latest(folder / "runs")
    answer = api.get("/view/api/playground", params={"source": run.name}).json()["agent"]
    assert answer["source"] == run.name
    call = api.get("/view/api/call", params=answer).json()
    assert (call["messages"][0]["role"], call["tools"], call["offered"]) == ("system", [LOOKUP], True)
    assert (call["sampling"]["temperature"], call["sampling"]["max_tokens"]) == (1.0, 8)


def test_a_recorded_call_is_replayed_beside_its_reply(page: Any, serving: str, folder: Path) -> None:
    run = RunFolder.latest(folder / "runs").name
    open_page(page, serving, f"#/run/{run}/rollouts")
    page.locator("tbody tr").first.click()
    page.wait_for_selector(".reply")
    reply = page.locator(".reply pre").first.inner_text() if page.locator(".reply pre").count() else ""
    page.get_by_role("link", name="Replay").click()
    page.wait_for_selector("textarea")
    assert page.get_by_label("Message 1", exact=True).input_value() == "Write letters."
    assert "lookup" in page.inner_text(".tools summary")
    assert page.get_by_label("Max tokens").input_value() == "8"
    assert reply in page.get_by_label("Recorded reply").inner_text()
    assert nameless(page) == []
    page.get_by_label("Message 2", exact=True).fill("another question")
    page.get_by_role("button", name="Ask").click()
    for column in ("Policy v1", "Before training"):
        page.get_by_label(column).locator(".facts", has_text="token").wait_for()
    page.get_by_role("button", name="Ask").wait_for()
    assert page.locator(".answers .column").count() == 3
    assert page.locator(".answers [role=alert]").count() == 0


def test_an_error_stands_in_the_column_of_its_model(page: Any, serving: str) -> None:
    open_page(page, serving, "#/playground")
    page.get_by_label("Ask the model before training").uncheck()
    page.get_by_label("Message 2", exact=True).fill("hi")
    page.get_by_label("Temperature").fill("-1")
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector(".answers [role=alert]")
    assert "temperature" in page.inner_text(".answers [role=alert]")
    assert page.locator(".answers .column").count() == 1


def test_hostile_text_in_the_playground_is_shown_and_never_run(page: Any, serving: str, api: httpx.Client) -> None:
    (store,) = api.get("/view/api/runs").json()["stores"]
    open_page(page, serving)
    page.evaluate("name => { location.hash = `#/run/${encodeURIComponent(name)}/rollouts` }", store["name"])
    page.locator("tbody tr").first.click()
    page.get_by_role("link", name="Replay").click()
    page.wait_for_selector("textarea")
    assert page.get_by_label("Message 1", exact=True).input_value() == HOSTILE
    assert HOSTILE in page.get_by_label("Recorded reply").inner_text()
    assert page.evaluate("window.ran") is None


def test_without_a_model_the_playground_says_how_to_get_one(page: Any, link: str, world: Path) -> None:
    run = RunFolder.latest(world / "runs").name
    open_page(page, link, f"#/playground?source={run}")
    page.wait_for_selector(f"text=Run `agl serve runs/{run}` and open the page that it prints.")
    with client(link) as api:
        assert api.post("/view/api/ask/policy", json=QUESTION).status_code == 404
