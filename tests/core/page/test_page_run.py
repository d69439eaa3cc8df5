"""The view of a run whose numbers are few, or of several policies, or of prompts; and what the page does with odd input and little room.

Each run is a copy of a real one, in which some lines of `metrics.jsonl` or `result.json` were changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_world import fill, open_page, run_async, served

from agentlightning.algorithms.prompt_search import PromptCandidate, PromptSearch
from agentlightning.page.prompts import search_of, stages_of
from agentlightning.page.run import columns
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState

Rows = list[dict[str, Any]]
MEASURED = ("entropy", "loss", "grad_norm", "mismatch_kl", "mismatch_abs")
BEST = "Answer with letters."
INTERVAL = {"low": 0.1, "high": 0.3, "pairs": 8, "unpaired": 0}
CONTRIBUTED = {"before": 0.25, "after_prompts": 0.45, "after_weights": 0.65}
CHANGES = {stage: {"mean": 0.2, **INTERVAL} for stage in ("prompts", "weights")}
STAGES = {"prompts_run": "20260101-000000-search", "sampled": {**CONTRIBUTED, **CHANGES}}


def search() -> PromptSearch:
    own, better = {"system": "Write.", "user": "Go."}, {"system": BEST, "user": "Go."}
    candidates = [
        PromptCandidate(prompts=own, parents=[], scores={"a": 0.0}, step=0),
        PromptCandidate(prompts=better, parents=[0], scores={"a": 1.0}, step=1),
    ]
    return PromptSearch(candidates=candidates, rollouts=24, tokens=1172, rejected=3)


def edit(run: Path, change: Callable[[Rows], Rows]) -> None:
    rows = change(read_metrics(run))
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def without_last(rows: Rows) -> Rows:
    return [*rows[:-1], {name: value for name, value in rows[-1].items() if name not in MEASURED}]


def of_two(rows: Rows) -> Rows:
    """The numbers of one policy as those of two."""
    return [
        {name: value for name, value in row.items() if name not in MEASURED}
        | {f"{policy}/{name}": row[name] for policy in ("editor", "writer") for name in MEASURED if name in row}
        for row in rows
    ]


@pytest.fixture(scope="module")
def odd(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of odd runs, one of them without a real store, and a store with turning text."""
    folder = tmp_path_factory.mktemp("odd")
    runs = folder / "runs"
    real = RunFolder.latest(world / "runs").path
    for number, name in enumerate(("few", "begun", "policies", "prompts", "weights", "junk"), 1):
        shutil.copytree(real, runs / f"20260101-00000{number}-{name}")
    paths = {path.name.rpartition("-")[2]: path for path in runs.iterdir()}
    edit(paths["few"], without_last)
    edit(paths["begun"], lambda rows: rows[:1])
    edit(paths["policies"], of_two)
    with (paths["policies"] / "config.toml").open("a") as config:
        config.write("\n[policies.editor]\n\n[policies.writer]\n")
    searching = RunFolder(paths["prompts"])
    searching.write_state(replace(searching.read_state(), search=search(), choice=None))
    searching.result.unlink()  # it still runs
    result = paths["weights"] / "result.json"
    result.write_text(json.dumps({**json.loads(result.read_text()), "stages": STAGES}))

    async def record() -> None:
        store = open_store(f"sqlite:{folder / 'agl.db'}")
        await fill(store, 1, text="abc \u202e txt.exe")
        await store.close()

    run_async(record())
    for file in paths["junk"].glob("store.db*"):
        file.unlink()
    (paths["junk"] / "store.db").write_text("This is no database.\n" * 40)
    return folder


@pytest.fixture(scope="module")
def odd_link(odd: Path) -> Iterator[str]:
    with served(odd) as printed:
        yield printed


def chart(page: Any, title: str) -> Any:
    page.wait_for_selector(".chart canvas")
    return page.locator(".chart", has=page.locator(f"figcaption strong:text-is('{title}')"))


def drawn(figure: Any) -> int:
    """The pixels of a chart in its first colour, in the light theme."""
    script = """canvas => { const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height); let count = 0;
        for (let at = 0; at < data.length; at += 4) count += data[at] === 91 && data[at + 1] === 79 && data[at + 2] === 224;
        return count; }"""
    return figure.locator("canvas").evaluate(script)


def test_a_chart_tells_the_step_of_its_last_value_and_one_value_is_a_dot(page: Any, odd_link: str) -> None:
    open_page(page, odd_link, "#/run/20260101-000001-few")
    for figure in (chart(page, "Entropy"), chart(page, "Loss")):
        assert figure.locator(".legend").inner_text().startswith("step 1")
        assert drawn(figure) > 0
    assert chart(page, "Reward").locator(".legend").inner_text().startswith("step 2")


def test_before_the_first_step_nothing_is_called_not_measured(page: Any, odd_link: str) -> None:
    open_page(page, odd_link, "#/run/20260101-000002-begun")
    chart(page, "Reward")
    page.wait_for_selector("text=No step of this run has ended.")
    assert "Not measured" not in page.inner_text("main")


def test_each_of_several_policies_has_a_line(page: Any, odd_link: str, odd: Path) -> None:
    open_page(page, odd_link, "#/run/20260101-000003-policies")
    for title in ("Entropy", "Loss"):
        legend = chart(page, title).locator(".legend").inner_text()
        assert "editor" in legend
        assert "writer" in legend
    assert "writer, mean |Δ|" in chart(page, "Engine/trainer mismatch").locator(".legend").inner_text()
    rows = read_metrics(odd / "runs" / "20260101-000003-policies")
    assert columns(rows, ["editor", "writer"])["writer/entropy"] == [row.get("writer/entropy") for row in rows]


def test_a_search_shows_its_best_prompts_and_its_candidates(page: Any, odd_link: str) -> None:
    open_page(page, odd_link, "#/run/20260101-000004-prompts")
    page.wait_for_selector(".prompts")
    assert BEST in page.inner_text(".prompts")
    assert "1 accepted, 3 rejected, 24 rollouts, 1,172 tokens" in page.inner_text(".prompts")
    page.get_by_text("2 candidates").click()
    assert page.locator(".candidates .candidates summary").inner_text().startswith("1 1.000 step 1, system ")


def test_two_stages_show_what_each_contributed(page: Any, odd_link: str) -> None:
    open_page(page, odd_link, "#/run/20260101-000005-weights")
    page.wait_for_selector(".prompts table")
    row = page.locator(".prompts tbody tr").inner_text().split("\t")
    assert row == ["sampled", "0.250", "+0.200 [+0.10, +0.30]", "+0.200 [+0.10, +0.30]", "0.650"]


def test_a_candidate_has_the_texts_that_it_changed() -> None:
    assert (search_of(RunState()), stages_of({}, None)) == (None, None)
    found: Any = search_of(RunState(search=search()))
    assert [[text["name"] for text in candidate["changed"]] for candidate in found["candidates"]] == [["system", "user"], ["system"]]
    assert [(prompt["name"], prompt["own"]) for prompt in found["best"]] == [("system", False), ("user", True)]


def test_a_character_that_turns_text_round_is_shown_by_its_code(page: Any, odd_link: str) -> None:
    open_page(page, odd_link, "#/run/agl.db/rollouts")
    page.locator("tbody tr").first.click()
    page.wait_for_selector(".reply")
    text = page.inner_text("body")
    assert "abc \\u202e txt.exe" in text
    assert "\u202e" not in text


def test_a_malformed_address_is_no_view(page: Any, odd_link: str) -> None:
    open_page(page, odd_link, "#/%E0%A4%A")
    page.wait_for_selector("text=This page has no view #/%E0%A4%A.")


def test_nothing_more_is_offered_below_an_error(page: Any, odd_link: str) -> None:
    open_page(page, odd_link, "#/run/20260101-000006-junk/rollouts")
    page.wait_for_selector("text=is not a SQLite database")
    assert page.get_by_role("button", name="Load more").count() == 0


def test_a_narrow_window_shows_rewards_links_and_the_way_back(page: Any, odd_link: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    run = "20260101-000001-few"

    def ends(locator: Any) -> float:
        box = locator.bounding_box()
        return box["x"] + box["width"]

    open_page(page, odd_link, f"#/run/{run}/rollouts")
    page.wait_for_selector("tbody tr")
    assert ends(page.locator("th", has_text="Reward")) <= 400
    crumb = page.locator(".crumbs a", has_text="Rollouts")
    assert crumb.evaluate("it => it.scrollWidth <= it.clientWidth")
    page.evaluate("address => { location.hash = address }", f"#/compare?a={run}&tasks=all")
    page.wait_for_selector(".opener")
    assert ends(page.get_by_role("link", name="Open B").first) <= 400
