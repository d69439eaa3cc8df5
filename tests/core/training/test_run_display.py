"""A run and its rollouts in a notebook: as HTML in which nothing of a model is markup, and as data frames."""

from __future__ import annotations

import asyncio
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas
import polars
import pytest
from letters import TASKS, two_turns

import agentlightning as agl
from agentlightning.errors import ConfigError, MissingExtra
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import Learned
from agentlightning.types import Call, Completion, Reward, Rollout, Sampling, Span, Task

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;"
TAGS = {"div", "b", "i", "p", "table", "tr", "th", "td", "details", "summary", "svg", "line", "text", "polyline", "circle", "title"}


class Page(HTMLParser):
    """Checks that HTML is well formed and has harmless markup only. Collects its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open, self.text, self.tags = list[str](), "", list[str]()
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert not [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]
        self.tags.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(model: str, tmp_path_factory: pytest.TempPathFactory) -> agl.Run:
    folder = tmp_path_factory.mktemp("runs")
    return agl.train(
        two_turns, tasks=TASKS, eval_tasks=TASKS[:2], model=model, steps=2, tasks_per_step=2, algorithm=agl.LightningRL(group_size=2),
        folder=str(folder), name="letters", progress=False, trainer={"name": "torch", "lr": 1e-3},
    )  # fmt: skip


def test_a_run_shows_its_evaluations_and_its_curves(run: agl.Run) -> None:
    page = Page(run._repr_html_())
    assert run.folder.name in page.text
    assert "2 steps" in page.text
    sampled = run.result["eval"]["sampled"]
    for text in (f"{sampled['before']:.3f}", f"{sampled['after']:.3f}", "eval, greedy", "training, sampled, step 2: "):
        assert text in page.text, text
    assert page.tags.count("circle") == 6  # training after two steps; both evaluations, before and after
    assert page.tags.count("polyline") == 3


def test_a_rollout_shows_the_tree_of_its_calls_with_messages_and_replies(run: agl.Run) -> None:
    chosen = run.frame("rollouts").query("mode == 'train'").iloc[0]
    rollout = run.rollout(chosen.id[-8:])
    assert (rollout.id, rollout.reward) == (chosen.id, chosen.reward)
    assert repr(rollout) == f"RunRollout(id={rollout.id!r}, status='succeeded', reward={rollout.reward})"
    page = Page(rollout._repr_html_())
    assert not [attempt.key for attempt in rollout.state.attempts if attempt.key in page.text]
    for text in (chosen.task, "attempt 1: succeeded", "model call 0", "model call 1", "2 earlier messages", "return"):
        assert text in page.text, text
    with pytest.raises(ConfigError, match="There is no rollout 'zzz'"):
        run.rollout("zzz")


def test_the_frames_have_every_step_and_every_rollout(run: agl.Run) -> None:
    metrics, rollouts = run.frame(), run.frame("rollouts")
    assert isinstance(metrics, pandas.DataFrame)
    assert metrics.step.tolist() == [row["step"] for row in read_metrics(run.folder)]
    assert metrics["eval.sampled"].dropna().tolist()[-1] == run.result["eval"]["sampled"]["after"]
    train = rollouts[rollouts["mode"] == "train"]
    assert train.groupby("step").reward.mean().round(6).tolist() == metrics.reward.dropna().round(6).tolist()
    assert train.trained_tokens.sum() == metrics.trained_tokens.sum()
    assert (train.calls == 2).all()
    assert set(rollouts[rollouts["mode"] == "eval"].greedy) == {True, False}
    assert rollouts.error.isna().all()


def test_polars_takes_the_place_of_pandas_and_without_both_the_error_names_the_command(
    run: agl.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    frame = run.frame("rollouts")
    assert isinstance(frame, polars.DataFrame)
    assert frame.filter(polars.col("mode") == "train")["calls"].to_list() == [2] * 8
    assert run.frame()["step"].to_list() == [0, 1, 2]
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingExtra, match="Run: pip install pandas"):
        run.frame()


async def test_a_run_can_be_read_while_an_event_loop_runs(run: agl.Run) -> None:
    assert len(run.frame("rollouts"))  # as in a notebook


def test_what_a_model_or_an_agent_wrote_is_text(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "evil")
    folder.write_config('model = "m"\n')

    async def fill() -> str:
        store = open_store(folder.store_address)
        rollout = Rollout(task=Task(EVIL, {"question": EVIL}), mode="train", step=0, sampling=Sampling())
        attempt = await store.begin(rollout, EVIL, lease=60)
        tool_call = {"function": {"name": EVIL, "arguments": EVIL}}
        call = Call(
            id="c", attempt_id=attempt.id, index=0, status="refused", detail=EVIL, tools=1, tool_schemas=[{"function": {"name": EVIL}}],
            messages=[{"role": EVIL, "content": EVIL, "tool_calls": [tool_call]}, {"role": "user", "content": [{"type": EVIL}]}],
        )  # fmt: skip
        reply = Completion(
            call_id="c", attempt_id=attempt.id, prompt_ids=[1], response_ids=[2], logprobs=[-1.0], versions=[0], sampling=Sampling(),
            finish_reason="stop", message={"role": "assistant", "content": EVIL, "reasoning_content": EVIL},
        )  # fmt: skip
        spans = [
            Span(attempt_id=attempt.id, kind="llm", name=EVIL, agent=EVIL, call_id="c"),
            Span(attempt_id=attempt.id, kind="tool", name=EVIL, attributes={EVIL: EVIL}),
        ]
        await store.record([call, reply, *spans, Reward(attempt_id=attempt.id, value=1.0, name=EVIL)])
        await store.finish(attempt.id, "failed", error=EVIL)
        await store.close()
        return rollout.id

    rollout_id = asyncio.run(fill())
    folder.write_batch(1, {rollout_id: Learned(advantages=(0.5,))})
    result: dict[str, Any] = {"model": EVIL, "steps": EVIL, "eval": {EVIL: {"before": 0.5}}, "diagnosis": {"text": EVIL}}
    run = agl.Run(folder.path, result)
    page = Page(run.rollout(rollout_id)._repr_html_())
    assert page.text.count(EVIL) >= 12
    assert Page(run._repr_html_()).text.count(EVIL) == 4
