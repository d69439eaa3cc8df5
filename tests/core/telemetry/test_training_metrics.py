"""`/metrics` of a run, scraped by its own agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

import agentlightning as agl
from agentlightning.training.metrics import read_metrics
from agentlightning_torch.testing import tiny_model

TOKEN = "open-sesame"


def test_a_run_exposes_its_steps_rewards_and_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_TOKEN", TOKEN)
    scrapes: list[dict[str, float]] = []

    def agent(task: Any, llm: agl.LLM) -> float:
        root, keys = llm.base_url.removesuffix("/v1"), {"Authorization": f"Bearer {llm.api_key}"}
        body = {"model": llm.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = httpx.post(f"{root}/v1/chat/completions", json=body, headers=keys, timeout=60)
        assert httpx.get(f"{root}/metrics", headers=keys).status_code == 401
        text = httpx.get(f"{root}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
        families = text_string_to_metric_families(text)
        scrapes.append({f"{s.name}{sorted(s.labels.values())}": s.value for family in families for s in family.samples})
        return float(len(answer.json()["choices"][0]["message"]["content"]) % 3)

    model = tiny_model(tmp_path / "model").path
    run = agl.train(
        agent, tasks=["a", "b"], model=model, steps=2, tasks_per_step=1, algorithm=agl.LightningRL(group_size=2), progress=False,
        folder=str(tmp_path),
    )  # fmt: skip
    first, last = scrapes[0], scrapes[-1]
    assert "agl_training_reward[]" not in first  # not measured yet
    rows = read_metrics(run.folder)
    assert last["agl_training_step[]"] == 1
    assert last["agl_training_steps[]"] == 2
    assert last["agl_training_reward[]"] == pytest.approx(rows[0]["reward"])
    assert last["agl_training_phase_seconds_total['rollouts']"] == pytest.approx(rows[0]["seconds.rollouts"])
    assert last["agl_training_phase_seconds_total['training']"] == pytest.approx(rows[0]["seconds.training"])
    assert last["agl_training_tokens_total[]"] == rows[0]["trained_tokens"]
    assert last["agl_training_last_step_timestamp_seconds[]"] > 1e9
    assert last["agl_model_calls_total['completed']"] >= 3
