"""The page in a real browser: a short walk through every view, and hostile text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from page_world import HOSTILE, expect_rows, open_page

from agentlightning.training.run_folder import RunFolder


def test_a_walk_from_the_runs_to_the_tokens_of_a_reply(page: Any, link: str, world: Path) -> None:
    name = RunFolder.latest(world / "runs").name
    open_page(page, link)
    assert "token" not in page.url
    page.get_by_role("link", name="letters").click()
    page.wait_for_selector(".chart canvas")
    assert "Reward" in page.inner_text(".charts")
    page.get_by_role("link", name="Rollouts").first.click()
    page.get_by_role("button", name="Train").click()
    expect_rows(page, 16)
    assert page.url.endswith(f"#/run/{name}/rollouts?mode=train")
    page.locator("tbody tr").first.click()
    page.wait_for_selector(".reply")
    assert "Write letters." in page.inner_text(".messages")
    assert page.locator(".node.call").count() == 2
    page.get_by_role("button", name="Exact tokens").click()
    page.wait_for_selector(".token.sampled")
    page.locator(".token.sampled").first.hover()
    tip = page.inner_text(".tip")
    assert "id" in tip
    assert "log-probability" in tip
    assert "mismatch" in tip
    page.get_by_role("button", name="Mismatch").click()
    page.wait_for_selector("text=The trainer’s log-probability minus the engine’s.")
    assert page.locator(".token.sampled:is(.m0, .m1, .m2, .m3)").count() == page.locator(".token.sampled").count()
    page.get_by_role("link", name="in its group").click()
    page.wait_for_selector(".column")
    assert page.locator(".column").count() == 4
    assert page.locator(".fork").count() == 4


def test_a_mismatch_that_was_not_recorded_is_no_zero(page: Any, link: str) -> None:
    open_page(page, link, "#/run/agl.db/rollouts")
    page.locator("tbody tr").first.click()
    page.get_by_role("button", name="Exact tokens").click()
    page.get_by_role("button", name="Mismatch").click()
    page.wait_for_selector("text=Not recorded: this reply was not trained.")
    assert page.locator(".m0, .m1, .m2, .m3").count() == 4  # the legend
    page.locator(".token.sampled").first.hover()
    assert "mismatch" not in page.inner_text(".tip")


def test_a_comparison_shows_each_task_and_links_to_its_rollouts(page: Any, link: str, world: Path) -> None:
    name = RunFolder.latest(world / "runs").name
    open_page(page, link, f"#/compare?a={name}&tasks=all&kind=greedy")
    page.wait_for_selector("text=12+3")
    assert page.locator(".compared tbody tr").count() == 8
    page.locator(".compared tbody tr", has_text="12+3").get_by_role("link", name="Open B").click()
    page.wait_for_selector(".reply")
    assert "12+3" in page.inner_text("h1")
    assert "eval, step 2" in page.inner_text(".stats")


def test_text_of_a_model_is_shown_and_never_run(page: Any, link: str) -> None:
    open_page(page, link, "#/run/agl.db/rollouts")
    page.wait_for_selector("tbody tr")
    assert HOSTILE in page.inner_text("tbody")
    page.locator("tbody tr").first.click()
    page.wait_for_selector(".reply")
    assert page.inner_text(".messages").count(HOSTILE) == 2
    page.get_by_role("treeitem", name="tool lookup").get_by_role("button").click()
    page.wait_for_selector("text=output")
    assert HOSTILE in page.inner_text(".content")
    page.get_by_role("treeitem", name="agent").first.get_by_role("button").first.click()
    assert HOSTILE in page.inner_text(".content h2")
    assert page.evaluate("window.ran") is None
    assert page.locator("main img, main script, a[href^='javascript']").count() == 0


def test_a_wrong_token_is_refused_and_the_right_one_signs_in(page: Any, link: str) -> None:
    address, _, secret = link.partition("#token=")
    page.goto(f"{address}#token=wrong")
    page.wait_for_selector("text=This token is wrong.")
    assert page.locator("table").count() == 0
    page.get_by_label("Token").fill("also wrong")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("text=This token is wrong.")
    page.get_by_label("Token").fill(secret)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("table")
    assert page.evaluate("document.cookie") == ""
    page.reload()
    page.wait_for_selector("table")
