"""Several policies in one run, whole: each agent's calls go to its policy, and each policy learns from its own replies."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest
import torch
from letters import TASKS, score
from openai import AsyncOpenAI, BadRequestError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import agentlightning as agl
from agentlightning.contracts.trainer import Capabilities
from agentlightning.errors import ConfigError, HalfStep, JoinError, NonFinite, PluginError, RunError
from agentlightning.serving.export import export_run
from agentlightning.stores.common import open_store
from agentlightning.training.job import make_job
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.step_logprobs import read_step_logprobs
from agentlightning.training.train import train_job
from agentlightning.types import Span
from agentlightning_torch.engine import TorchEngine
from agentlightning_torch.trainer import TorchTrainer
from world import StopAfter

POLICIES: dict[str, Any] = {"editor": {"agents": ["edit*"]}, "writer": {"agents": ["write"]}}
"""The editor is the default, so that only its name leads a call to the writer."""
LORA = {"name": "torch", "train": "lora", "lora_rank": 4, "lr": 1e-2}
FULL = {"name": "torch", "train": "full", "lr": 1e-3}
ONE_BY_ONE: dict[str, Any] = {"engine": {"name": "torch", "max_batch": 1}, "runner": {"concurrency": 1}}
"""One request at a time, so that the engine repeats its bits."""


async def ask(llm: agl.LLM, text: str, *, agent: str | None = None, model: str | None = None) -> str:
    headers = {} if agent is None else {"X-AGL-Agent": agent}
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0, default_headers=headers) as client:
        messages: list[Any] = [{"role": "user", "content": text}]
        answer = await client.chat.completions.create(model=model or llm.model, messages=messages, max_tokens=8)
    return answer.choices[0].message.content or ""


async def write_and_edit(task: Any, llm: agl.LLM) -> float:
    """The writer is known by the header of its requests, the editor by the model that it asks for."""
    assert {*llm.policies} >= {"writer", "editor"}
    draft = await ask(llm, task["text"], agent="write")
    return score(await ask(llm, f"edit {draft}", model="editor"))


def settings(model: str, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": model, "folder": folder, "name": "two", "steps": 2, "tasks_per_step": 2, "policies": POLICIES, "trainer": LORA,
        "algorithm": agl.LightningRL(group_size=4), "progress": False, **more,
    }  # fmt: skip


def measured(run: agl.Run) -> list[dict[str, Any]]:
    """The metrics that no clock decides."""
    return [{name: value for name, value in row.items() if "second" not in name} for row in read_metrics(run.folder)]


def adapter(run: agl.Run, policy: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(RunFolder(run.folder).checkpoint(step) / policy / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


async def completions(run: agl.Run) -> list[Any]:
    store = open_store(RunFolder(run.folder).store_address)
    try:
        states, _ = await store.list(limit=1000)
        records = [await store.records(state.winner.id) for state in states if state.winner is not None]
        return [completion for attempt in records for completion in attempt.completions]
    finally:
        await store.close()


@pytest.fixture(scope="module")
def run(model: str, tmp_path_factory: pytest.TempPathFactory) -> agl.Run:
    folder = tmp_path_factory.mktemp("joint")
    return agl.train(write_and_edit, tasks=TASKS, eval_tasks=TASKS[:2], **settings(model, folder, **ONE_BY_ONE, checkpoints={"every": 1}))


@pytest.fixture(scope="module", autouse=True)
def one_thread_for_all() -> None:
    torch.set_num_threads(1)


async def test_each_policy_answers_its_agents_and_trains_on_its_own_replies(run: agl.Run) -> None:
    recorded = await completions(run)
    assert {completion.policy for completion in recorded} == {"writer", "editor"}
    last = {name: max(int(c.versions.max()) for c in recorded if c.policy == name) for name in POLICIES}
    assert last == {"writer": 2, "editor": 2}, "the last evaluation samples from the last version of both"
    rows = [row for row in read_metrics(run.folder) if row["step"] > 0]
    for row in rows:
        assert row["trained_tokens"] == row["writer/trained_tokens"] + row["editor/trained_tokens"] > 0
        assert row["mismatch_abs"] == max(row["writer/mismatch_abs"], row["editor/mismatch_abs"]) < 1e-4
        assert {"writer/loss", "editor/loss", "writer/grad_norm", "writer/reward", "editor/lr"} <= row.keys()
        assert "loss" not in row
        largest = max(POLICIES, key=lambda name: row[f"{name}/mismatch_abs"])
        assert row["mismatch_abs_error"] == row[f"{largest}/mismatch_abs_error"] > 0
        assert row["entropy"] == min(row["writer/entropy"], row["editor/entropy"])
    assert run.result["policies"]["writer"] == {"version": 2, "trained": True, "checkpoint": f"{run.result['checkpoint']}/writer"}
    for name in POLICIES:
        state = load_file(run.folder / run.result["policies"][name]["checkpoint"] / "adapter_model.safetensors")
        assert any(value.abs().sum() > 0 for key, value in state.items() if "lora_B" in key)


def test_every_sampled_token_of_every_policy_is_trained_or_left_out_by_name_and_has_the_trainers_logprobs(run: agl.Run) -> None:
    folder = RunFolder(run.folder)
    for row in read_metrics(run.folder)[1:]:
        learned = folder.read_batch(row["step"])
        assert sum(part.trained for part in learned.values()) == row["trained_tokens"]
        assert sum(part.trained + sum(part.excluded.values()) for part in learned.values()) == row["sampled_tokens"]
        assert {len(part.returns) for part in learned.values()} == {2}
    logprobs = read_step_logprobs(folder.logprobs(2))
    assert logprobs is not None
    recorded = {completion.id: completion for completion in asyncio.run(completions(run))}
    assert {recorded[name].policy for name in logprobs.by_completion} == {"writer", "editor"}
    assert {logprobs.version_of(name) for name in logprobs.by_completion} == {1}


@pytest.mark.parametrize("trained", ["writer", "editor"])
def test_a_policy_learns_exactly_what_it_learns_beside_a_frozen_partner(run: agl.Run, model: str, tmp_path: Path, trained: str) -> None:
    """In the first step both runs have the same rollouts. One policy's gradient must not depend on whether the other one is trained."""
    frozen = {name: {**policy, "train": name == trained} for name, policy in POLICIES.items()}
    alone = agl.train(write_and_edit, tasks=TASKS, **settings(model, tmp_path, **ONE_BY_ONE, policies=frozen, steps=1))
    joint_row, alone_row = read_metrics(run.folder)[1], read_metrics(alone.folder)[0]
    for name in ("loss", "grad_norm", "trained_tokens", "entropy", "reward"):
        assert alone_row[f"{trained}/{name}"] == joint_row[f"{trained}/{name}"]
    assert same(adapter(alone, trained, 1), adapter(run, trained, 1))
    other = next(name for name in POLICIES if name != trained)
    assert not any(name.startswith(f"{other}/") for name in alone_row)
    learned = RunFolder(alone.folder).read_batch(1)
    reasons = {reason for part in learned.values() for reason in part.excluded}
    assert f"sampled by policy {other!r}" in reasons
    assert alone.result["policies"][other] == {"version": 0, "trained": False}


def test_a_stopped_and_resumed_run_is_bitwise_one_that_was_not(model: str, tmp_path: Path) -> None:
    arguments = settings(model, tmp_path, **ONE_BY_ONE, steps=4)
    whole = agl.train(write_and_edit, tasks=TASKS, **arguments)
    stopper = StopAfter(2)
    job = make_job(write_and_edit, tasks=TASKS, **{key: value for key, value in arguments.items() if key != "progress"})
    half = asyncio.run(train_job(job, progress=stopper, resume=None, stop=stopper.stop))
    assert half.stopped
    resumed = agl.train(write_and_edit, tasks=TASKS, resume=half.folder, **arguments)
    assert measured(resumed) == measured(whole)
    for name in POLICIES:
        assert same(adapter(resumed, name, 4), adapter(whole, name, 4))
        assert not same(adapter(resumed, name, 4), adapter(resumed, name, 2))


async def test_a_frozen_partner_keeps_its_adapter_bit_equal_and_is_never_trained(run: agl.Run, model: str, tmp_path: Path) -> None:
    partner = run.folder / run.result["policies"]["editor"]["checkpoint"]
    before = load_file(partner / "adapter_model.safetensors")
    policies = {"writer": {"agents": ["write"]}, "editor": {"train": False, "weights": str(partner)}}
    later = await agl.train_async(write_and_edit, tasks=TASKS, **settings(model, tmp_path, policies=policies))
    recorded = await completions(later)
    assert {int(version) for c in recorded if c.policy == "editor" for version in c.versions} == {0}
    assert {int(version) for c in recorded if c.policy == "writer" for version in c.versions} == {0, 1}
    assert all("editor/loss" not in row for row in read_metrics(later.folder))
    assert same(load_file(partner / "adapter_model.safetensors"), before)
    assert later.result["policies"]["editor"] == {"version": 0, "trained": False, "checkpoint": str(partner)}
    reply = next(c for c in recorded if c.policy == "editor")
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(partner)).eval()
    ids = torch.tensor([[*reply.prompt_ids, *reply.response_ids]])
    with torch.no_grad():
        logprobs = loaded(input_ids=ids).logits[0, len(reply.prompt_ids) - 1 : -1].log_softmax(-1)
    own = logprobs.gather(1, ids[0, len(reply.prompt_ids) :, None])[:, 0]
    torch.testing.assert_close(own, torch.tensor(reply.logprobs), atol=1e-4, rtol=0)


def test_policies_have_settings_of_their_own(model: str, tmp_path: Path) -> None:
    policies = {
        "writer": {"agents": ["write"], "algorithm": {"advantage": "rloo", "loss": "gspo"}, "trainer": {"lr": 1e-3, "lora_rank": 2}},
        "editor": {"agents": ["edit"], "algorithm": {"name": "rft", "group_size": 4, "min_reward": 0.0}},
    }
    mixed = agl.train(write_and_edit, tasks=TASKS, **settings(model, tmp_path, policies=policies, steps=1))
    (row,) = read_metrics(mixed.folder)
    assert (row["writer/lr"], row["editor/lr"]) == (1e-3, 1e-2)
    assert "writer/nonzero_advantages" in row
    assert "editor/nonzero_advantages" not in row, "rft has no advantages"
    assert {value.shape[0] for name, value in adapter(mixed, "writer", 1).items() if "lora_A" in name} == {2}


def test_policies_train_full_weights_of_their_own_and_a_resumed_run_is_bitwise_one_that_was_not(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = {"editor": {"agents": ["edit*"], "trainer": {"train": "top:1"}}, "writer": {"agents": ["write"]}}
    arguments = settings(model, tmp_path, **ONE_BY_ONE, steps=4, policies=policies, trainer=FULL)
    whole = agl.train(write_and_edit, tasks=TASKS, **arguments)
    stopper = StopAfter(2)
    job = make_job(write_and_edit, tasks=TASKS, **{key: value for key, value in arguments.items() if key != "progress"})
    half = asyncio.run(train_job(job, progress=stopper, resume=None, stop=stopper.stop))
    resumed = agl.train(write_and_edit, tasks=TASKS, resume=half.folder, **arguments)
    assert measured(resumed) == measured(whole)
    assert all(row["mismatch_abs"] < 1e-4 for row in read_metrics(whole.folder))
    before = AutoModelForCausalLM.from_pretrained(model).state_dict()
    changed, states = dict[str, set[str]](), dict[str, Any]()
    for name in POLICIES:
        folders = [run.folder / run.result["policies"][name]["checkpoint"] for run in (resumed, whole)]
        again, states[name] = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
        assert same(again, states[name])
        changed[name] = {key for key, value in again.items() if not torch.equal(value, before[key])}
    assert changed["editor"] < changed["writer"]
    assert "model.embed_tokens.weight" in changed["writer"] - changed["editor"]
    # one of them as a model, and as the frozen partner of another run
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))
    export_run(RunFolder(whole.folder), tmp_path / "writer", "writer")
    assert same(AutoModelForCausalLM.from_pretrained(tmp_path / "writer").state_dict(), states["writer"])
    beside = {"editor": {"agents": ["edit*"]}, "writer": {"agents": ["write"], "train": False, "weights": str(tmp_path / "writer")}}
    later = agl.train(write_and_edit, tasks=TASKS, **settings(model, tmp_path / "later", policies=beside, steps=1))
    assert later.result["policies"]["writer"] == {"version": 0, "trained": False, "checkpoint": str(tmp_path / "writer")}
    reply = next(c for c in asyncio.run(completions(later)) if c.policy == "writer")
    ids = torch.tensor([[*reply.prompt_ids, *reply.response_ids]])
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "writer").eval()(input_ids=ids).logits
    own = logits[0, len(reply.prompt_ids) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(reply.prompt_ids) :, None])[:, 0]
    torch.testing.assert_close(own, torch.tensor(reply.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("trainer", [LORA, FULL])
def test_rollouts_run_ahead_of_the_steps_of_both_policies(model: str, tmp_path: Path, trainer: dict[str, Any]) -> None:
    ahead = agl.train(write_and_edit, tasks=TASKS, **settings(model, tmp_path, steps=3, collection={"max_staleness": 1}, trainer=trainer))
    rows = read_metrics(ahead.folder)
    assert [row["rollouts"] for row in rows] == [8, 8, 8]
    assert all(row["mismatch_abs"] < 1e-4 for row in rows if "mismatch_abs" in row)
    assert rows[-1]["policy_version"] == rows[-1]["writer/policy_version"] + rows[-1]["editor/policy_version"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneStep(agl.LightningRL):
    """An algorithm that stops after a step of its own."""

    async def run(self, session: Any) -> None:
        for step in session.steps():
            await session.collect(step, self.group_size)
            return


def test_an_algorithm_that_ends_before_the_others_is_an_error(model: str, tmp_path: Path) -> None:
    policies = {**POLICIES, "writer": {"agents": ["write"], "algorithm": {"name": f"{__name__}:OneStep", "group_size": 4}}}
    with pytest.raises(PluginError, match="Algorithm 'OneStep' of policy 'writer' ended before the run"):
        agl.train(write_and_edit, tasks=TASKS, **settings(model, tmp_path, policies=policies))


def test_a_policy_that_cannot_step_after_another_one_has_stepped_leaves_no_checkpoint_of_half_a_step(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TorchTrainer._step

    def failing(trainer: TorchTrainer, *arguments: Any) -> Any:
        if trainer.name == "writer" and trainer.policy.version == 1:
            raise NonFinite("The loss is nan.")
        return step(trainer, *arguments)

    monkeypatch.setattr(TorchTrainer, "_step", failing)
    with pytest.raises(HalfStep, match=r"Policy 'writer' could not take its step, and editor had taken theirs\. The loss is nan\."):
        agl.train(write_and_edit, tasks=TASKS, **settings(model, tmp_path, checkpoints={"every": 1}))
    (folder,) = RunFolder.all(tmp_path)
    assert folder.steps() == [1]


# --- which policy answers ---


async def test_an_agent_that_asks_for_the_model_of_another_policy_is_refused_by_name(model: str, tmp_path: Path) -> None:
    refusals: list[str] = []

    async def confused(task: Any, llm: agl.LLM) -> float:
        with pytest.raises(BadRequestError) as refusal:
            await ask(llm, "hi", agent="write", model="editor")
        refusals.append(refusal.value.message)
        return await write_and_edit(task, llm)

    await agl.train_async(confused, tasks=TASKS, **settings(model, tmp_path, steps=1))
    assert "Agent 'write' asks for model 'editor', but policy 'writer' has this agent. Ask for model 'writer'" in refusals[0]


async def test_calls_of_agents_without_a_policy_go_to_the_first_one_and_the_run_says_so(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def strangers(task: Any, llm: agl.LLM) -> float:
        await ask(llm, task["text"])
        await ask(llm, task["text"], agent="critic")
        return await write_and_edit(task, llm)

    run = await agl.train_async(strangers, tasks=TASKS, **settings(model, tmp_path, steps=1))
    recorded = await completions(run)
    assert sum(c.policy == "editor" for c in recorded) == 3 * sum(c.policy == "writer" for c in recorded)
    warnings = [record.getMessage() for record in caplog.records if "belongs to no policy" in record.getMessage()]
    assert [warning.partition(" belongs")[0] for warning in warnings] == ["A call whose request names no agent", "Agent 'critic'"]


async def test_an_agent_that_was_known_too_late_and_answered_by_another_policy_stops_the_run(model: str, tmp_path: Path) -> None:
    async def late(task: Any, llm: agl.LLM) -> float:
        recorder = agl.current()
        assert recorder is not None
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
            answer = await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": "hi"}], max_tokens=4)
        recorder.add(Span(attempt_id=recorder.attempt.id, kind="llm", name="m", agent="write", call_id=answer.system_fingerprint))
        return score(answer.choices[0].message.content or "")

    with pytest.raises(JoinError, match=r"Agent 'write' belongs to policy 'writer', but policy 'editor' answered 8 of its calls"):
        await agl.train_async(late, tasks=TASKS, **settings(model, tmp_path, steps=1))


async def test_a_run_in_which_no_call_reaches_a_trained_policy_stops_after_its_first_step(model: str, tmp_path: Path) -> None:
    async def one_agent(task: Any, llm: agl.LLM) -> float:
        return score(await ask(llm, task["text"], agent="base"))

    policies = {"rest": {"train": False}, "writer": {"agents": ["write"]}}
    with pytest.raises(ConfigError, match=r"No call of the first step went to policy 'writer'"):
        await agl.train_async(one_agent, tasks=TASKS, **settings(model, tmp_path, policies=policies, steps=1))


class OnlyAdapters(TorchEngine):
    """An engine that serves no full weights of several policies, as vLLM."""

    several = frozenset({"lora"})


class Alone(TorchTrainer):
    """A trainer that shares no model."""

    @classmethod
    def offers(cls, settings: Any) -> Capabilities:
        return dataclasses.replace(super().offers(settings), several=None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policies": {"a": {"train": False}}}, "policies: a are all frozen"),
        ({"policies": {"a": {"agents": ["x"]}, "b": {"agents": ["x"]}}}, "policies 'a' and 'b' both have agent 'x'"),
        ({"policies": {"a b": {}}}, "policies has the name 'a b'"),
        ({"policies": {"main": {}}}, "policies has the name 'main'"),
        ({"policies": {"a": {"weights": "x"}}}, "a trained policy starts as the model itself"),
        ({"policies": {"a": {}, "b": {"train": False, "trainer": {"lr": 1e-3}}}}, "policies.b.trainer has no effect"),
        ({"policies": {"a": {"trainer": {"name": "verl"}}}}, "all policies share one trainer"),
        ({"policies": {"a": {"agent": ["x"]}}}, "policies.a"),
        ({"agents": ["write"]}, "agents and policies are both set"),
        ({"policies": {"a": {}, "b": {"algorithm": {"group_size": 2}}}}, "The policies differ in algorithm.group_size (a: 4, b: 2)"),
        ({"trainer": {"name": f"{__name__}:Alone"}}, "trains one policy. Use trainer 'torch'"),
        (
            {"trainer": FULL, "engine": {"name": f"{__name__}:OnlyAdapters"}},
            "several policies only as LoRA adapters. Set trainer.train",
        ),
        ({"policies": {"a": {}, "b": {"train": False, "weights": "nowhere"}}}, "which has neither adapter_config.json nor config.json"),
        ({"policies": {"a": {"trainer": {"lora_rang": 2}}}}, "lora_rang"),
    ],
)
def test_policies_that_cannot_work_are_refused_by_name(model: str, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        agl.train(write_and_edit, tasks=TASKS, **{**settings(model, tmp_path), **changes})
    assert not RunFolder.all(tmp_path)


AGENT = """
from openai import AsyncOpenAI

async def solve(task, llm):
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
        for model in llm.policies:
            messages = [{"role": "user", "content": task["text"]}]
            answer = await client.chat.completions.create(model=model, messages=messages, max_tokens=8)
    return len(answer.choices[0].message.content) / 10

def tasks():
    return [{"text": "abc"}, {"text": "xyz"}]
"""
CONFIG = """
agent = "two:solve"
tasks = "two:tasks"
eval_tasks = "two:tasks"
steps = 1
tasks_per_step = 1
[policies.editor]
[policies.writer]
[trainer]
train = "lora"
[algorithm]
group_size = 2
[runner]
workers = 1
"""


def test_worker_processes_know_the_policies_and_a_rollout_without_training_has_them_too(model: str, tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(AGENT)
    (tmp_path / "config.toml").write_text(f'model = "{model}"\n{CONFIG}')
    for command in (["train", "config.toml", "--dry-run"], ["train", "config.toml"], ["rollout", "config.toml", "--greedy"]):
        agl_command = [str(Path(sys.executable).with_name("agl")), *command]
        done = subprocess.run(agl_command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
    trained, rolled = RunFolder.all(tmp_path / "runs")
    row = read_metrics(trained.path)[-1]
    assert (row["writer/transitions"], row["editor/transitions"]) == (2, 2)
    assert trained.read_result()["policies"].keys() == {"editor", "writer"}
    recorded = asyncio.run(completions(agl.Run(rolled.path, {})))
    assert {(c.policy, int(c.versions[0])) for c in recorded} == {("editor", 0), ("writer", 0)}


# --- after training ---


def test_a_run_is_served_with_all_its_policies(run: agl.Run, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("agl")), "serve", str(run.folder), "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "AGL_STORE": f"sqlite:{tmp_path / 'served.db'}", "AGL_TOKEN": "secret", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    shown: dict[str, str] = {}
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
        name, _, value = line.strip().partition(" ")
        shown[name] = value.strip()
    try:
        headers = {"authorization": "Bearer secret"}
        assert shown["policies"].startswith("editor, writer ")
        models = httpx.get(f"{shown['base_url']}/models", headers=headers).json()["data"]
        assert [model["id"] for model in models][1:] == ["editor", "writer"]
        answers: dict[str, str] = {}
        for asked in ("writer", "editor", shown["model"]):
            body = {"model": asked, "messages": [{"role": "user", "content": "abc"}], "max_tokens": 12, "temperature": 0}
            answer = httpx.post(f"{shown['base_url']}/chat/completions", json=body, headers=headers, timeout=60)
            answers[asked] = answer.json()["choices"][0]["message"]["content"]
        assert answers["editor"] == answers[shown["model"]], "the first policy is the default"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
        process.stdout.close()

    async def policies() -> list[tuple[str, int]]:
        store = open_store(f"sqlite:{tmp_path / 'served.db'}")
        try:
            states, _ = await store.list(mode="production")
            records = [(await store.read(state.rollout.id))[1][0] for state in states]
            return [(c.policy, int(c.versions[0])) for record in records for c in record.completions]
        finally:
            await store.close()

    assert asyncio.run(policies()) == [("writer", 2), ("editor", 2), ("editor", 2)]


def test_one_policy_is_exported_as_a_model_with_its_adapter_merged(
    run: agl.Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))
    folder = RunFolder(run.folder)
    with pytest.raises(RunError, match=r"has several policies: editor, writer\. .* --policy editor"):
        export_run(folder, tmp_path / "none")
    with pytest.raises(ConfigError, match="policy 'writr'"):
        export_run(folder, tmp_path / "none", "writr")
    export_run(folder, tmp_path / "editor", "editor")
    assert "# two: policy editor" in (tmp_path / "editor" / "README.md").read_text()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    adapter_folder = str(run.folder / run.result["policies"]["editor"]["checkpoint"])
    base = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        expected = peft.PeftModel.from_pretrained(base, adapter_folder).eval()(input_ids=ids).logits
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "editor")(input_ids=ids).logits
    torch.testing.assert_close(exported, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(exported, plain, atol=1e-3)
