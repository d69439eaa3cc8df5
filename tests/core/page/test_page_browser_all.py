"""The whole set of `make test-page`: live training, big stores, keys, filters, themes, and the pictures of the documents."""

from __future__ import annotations

import io
import os
import statistics
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from page_world import client, expect_rows, fill, nameless, open_page, run_async, served, served_run, train

from agentlightning.contracts.store import StoredRollout
from agentlightning.stores.common import open_store
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import new_id

pytestmark = pytest.mark.skipif(not os.environ.get("AGL_TEST_PAGE"), reason="make test-page")
DOCS = Path(__file__).parents[3] / "docs"
MANY = 100_000


def test_filters_are_in_the_address_and_an_address_shows_the_same_view(page: Any, link: str, world: Path) -> None:
    name = RunFolder.latest(world / "runs").name
    open_page(page, link, f"#/run/{name}/rollouts")
    page.get_by_role("button", name="Eval").click()
    page.get_by_label("Sampling").select_option("greedy")
    page.get_by_label("Step", exact=True).fill("2")
    page.keyboard.press("Enter")
    expect_rows(page, 8)
    address = page.url
    assert address.endswith("rollouts?mode=eval&sampling=greedy&step=2")
    page.get_by_label("Search tasks, prompts and replies").fill("HELLO")
    page.keyboard.press("Enter")
    expect_rows(page, 1)
    assert "hello" in page.inner_text("tbody")
    page.go_back()
    page.goto("about:blank")
    page.goto(address)
    expect_rows(page, 8)
    page.get_by_role("button", name="Clear").click()
    expect_rows(page, 50)
    page.get_by_role("button", name="Load more").click()
    page.wait_for_selector("text=No more: 64 of 64 rollouts.")


def test_everything_works_with_the_keyboard(page: Any, link: str, world: Path) -> None:
    name = RunFolder.latest(world / "runs").name
    open_page(page, link, f"#/run/{name}/rollouts?mode=train")
    page.wait_for_selector("tbody tr")
    for key in ("j", "j", "k", "j", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector(".reply")
    first = page.url
    page.keyboard.press("j")
    page.wait_for_selector("text=call 2")
    page.keyboard.press("t")
    page.wait_for_selector(".token.sampled")
    page.wait_for_selector(".neighbours")
    page.keyboard.press("[")
    page.wait_for_url(lambda url: url.partition("?")[0] != first.partition("?")[0])
    page.keyboard.press("?")
    page.wait_for_selector("[role=dialog]")
    page.keyboard.press("Escape")
    page.keyboard.press("g")
    page.wait_for_selector("text=letters")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"


FAST = """async (keys) => {
    for (const key of keys) {
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        await null; // states are rendered, but no effect has run
    }
}"""


def test_fast_keys_see_what_earlier_ones_did(page: Any, link: str, world: Path) -> None:
    open_page(page, link, f"#/run/{RunFolder.latest(world / 'runs').name}/rollouts?mode=train")
    page.wait_for_selector("tbody tr")
    page.evaluate(FAST, ["j", "j", "k", "j", "Enter"])
    page.wait_for_selector(".reply")


def test_every_control_has_a_name(page: Any, link: str, world: Path) -> None:
    name = RunFolder.latest(world / "runs").name
    for address in ("#/", f"#/run/{name}", f"#/run/{name}/settings", f"#/run/{name}/rollouts", f"#/compare?a={name}", "#/playground"):
        open_page(page, link, address)
        page.wait_for_timeout(500)
        assert nameless(page) == []


def test_the_theme_follows_the_system_until_somebody_chooses(browser: Any, link: str) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    open_page(page, link)
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    page.get_by_role("button", name="Theme: system").click()
    light = page.evaluate(colour)
    assert (dark, light) == ("rgb(15, 15, 18)", "rgb(251, 251, 252)")
    page.reload()
    page.wait_for_selector("table")
    assert page.evaluate(colour) == light
    context.close()


def test_a_run_is_followed_while_it_trains(page: Any, tiny: str, tmp_path: Path) -> None:
    training = Thread(target=train, args=(tiny, tmp_path / "runs"), kwargs={"steps": 40})
    with served(tmp_path) as link:
        open_page(page, link)
        page.wait_for_selector("text=No runs yet")
        training.start()
        page.get_by_role("link", name="letters").click(timeout=60_000)
        page.wait_for_selector("text=live")
        seen = set[str]()
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and page.locator(".heading .badge", has_text="finished").count() == 0:
            seen.add(page.locator(".stat .value").first.inner_text().split(" ")[0])
            page.wait_for_timeout(50)
        training.join()
        assert page.locator(".heading .badge").inner_text() == "finished"
        assert page.locator(".stat .value").first.inner_text() == "40 / 40"
        assert len(seen) >= 4, seen
        assert page.locator(".chart canvas").count() >= 6


def test_two_runs_are_compared_and_each_task_opens_its_rollout(page: Any, tiny: str, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(tiny, tmp_path / "runs", seed=seed)
        time.sleep(1)
    with served(tmp_path) as link:
        open_page(page, link)
        expect_rows(page, 2)
        for box in page.get_by_role("checkbox").all():
            box.check()
        page.get_by_role("link", name="Compare 2 runs").click()
        page.wait_for_selector("text=95% interval")
        page.get_by_role("button", name="All 8").click()
        page.get_by_role("link", name="Open B").first.click()
        page.wait_for_selector(".reply")
        assert "eval, step 2" in page.inner_text(".stats")


def copies(rollout: StoredRollout, numbers: range) -> list[StoredRollout]:
    """The same rollout under new ids."""
    from msgspec.structs import replace

    state, (records,) = rollout
    result = list[StoredRollout]()
    for number in numbers:
        rollout_id, attempt_id, call_id = new_id(), new_id(), new_id()
        attempt = replace(records.attempt, id=attempt_id, rollout_id=rollout_id, key=new_id())
        new = replace(state.rollout, id=rollout_id, task=replace(state.rollout.task, id=f"task {number}"), mode="train", step=number // 100)
        spans = {span.id: new_id() for span in records.spans}
        result.append((
            replace(state, rollout=new, attempts=(attempt,)),
            (replace(
                records,
                attempt=attempt,
                calls=tuple(replace(call, id=call_id, attempt_id=attempt_id) for call in records.calls),
                completions=tuple(replace(it, id=new_id(), attempt_id=attempt_id, call_id=call_id) for it in records.completions),
                spans=tuple(
                    replace(it, id=spans[it.id], attempt_id=attempt_id, parent_id=spans.get(it.parent_id or ""), call_id=call_id)
                    for it in records.spans
                ),
                rewards=tuple(replace(it, id=new_id(), attempt_id=attempt_id) for it in records.rewards),
            ),),
        ))  # fmt: skip
    return result


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with 100,000 rollouts."""
    file = tmp_path_factory.mktemp("many") / "many.db"

    async def record() -> None:
        store = open_store(f"sqlite:{file}")
        (first,) = await fill(store, 1, text="plain")
        stored = await store.read(first.id)
        for start in range(0, MANY, 1000):
            await store.put(copies(stored, range(start, min(start + 1000, MANY))))
        await store.close()

    run_async(record())
    return file


@pytest.mark.timeout(900)
def test_a_hundred_thousand_rollouts_show_within_a_second(page: Any, many: Path) -> None:
    with served(many.parent, str(many)) as link, client(link) as api:
        source = str(many)
        open_page(page, link)
        page.wait_for_selector("tbody tr")
        seconds = dict[str, float]()
        encoded = page.evaluate("encodeURIComponent", source)
        for what, query in {"newest": "", "filtered": "?mode=train&step=500", "status": "?status=succeeded"}.items():
            times = list[float]()
            for _ in range(3):
                page.goto("about:blank")
                began = time.perf_counter()
                page.goto(f"{link.partition('#')[0]}#/run/{encoded}/rollouts{query}")
                page.wait_for_selector("tbody tr")
                times.append(time.perf_counter() - began)
            seconds[what] = statistics.median(times)
        began = time.perf_counter()
        answer = api.get("/view/api/rollouts", params={"source": source, "text": "nobody wrote this"}).json()
        seconds["a part of a search"] = time.perf_counter() - began
        print({name: round(value, 3) for name, value in seconds.items()}, "searched", answer["searched"])
        assert all(value < 1 for value in seconds.values()), seconds
        assert answer["cursor"] is not None


PICTURES = {
    "runs": "#/", "run": "#/run/{run}", "rollouts": "#/run/{run}/rollouts?mode=train", "rollout": "#/run/{run}/rollout/{id}?node={last}",
    "tokens": "#/run/{run}/rollout/{id}?view=tokens&by=logprob", "group": "#/run/{run}/group/{group}", "compare": "#/compare?a={run}",
}  # fmt: skip
SHOWN = {"run": ".chart canvas", "rollout": ".reply", "tokens": ".token.sampled", "group": ".fork"}
"""What shows that a view is complete. The others have a table."""


@pytest.mark.skipif(not os.environ.get("AGL_TEST_PAGE_RUNS"), reason="make test-page RUNS=folder, with a run of `agl demo` in it")
def test_the_pictures_of_the_documents(browser: Any) -> None:
    folder = Path(os.environ["AGL_TEST_PAGE_RUNS"]).resolve()
    with served(folder.parent, folder.name) as link, client(link) as api:
        run = api.get("/view/api/runs").json()["runs"][0]["name"]
        shown = api.get("/view/api/rollouts", params={"source": run, "mode": "train", "trained": "yes"}).json()["rows"]
        row = next(row for row in shown if row["reward"] == 1.0 and row["tools"])
        detail = api.get("/view/api/rollout", params={"source": run, "id": row["id"]}).json()
        calls = [node for node in nodes(detail["attempts"][0]["nodes"]) if node["kind"] == "call"]
        names = {"run": run, "id": row["id"], "group": row["group"], "last": calls[-1]["id"]}
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        open_page(page, link)
        for name, address in PICTURES.items():
            page.evaluate("address => { location.hash = address }", address.format(**names))
            page.wait_for_selector(SHOWN.get(name, "tbody tr"))
            page.wait_for_timeout(400)
            if name == "tokens":
                page.locator(".token.sampled").nth(3).hover()
            take_picture(page, name)
        context.close()
    with served_run(folder.parent, f"{folder.name}/{run}") as link:
        page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
        open_page(page, link, f"#/playground?source={run}&id={row['id']}&call={calls[0]['id']}")
        page.get_by_label("Temperature").fill("0")
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("button", name="Ask").wait_for(timeout=120_000)
        take_picture(page, "playground")
        page.context.close()


def take_picture(page: Any, name: str) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(192, dither=Image.Dither.NONE)
    picture.save(DOCS / f"page-{name}.png", optimize=True)


def nodes(tree: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [node for root in tree for node in (root, *nodes(root["children"]))]
