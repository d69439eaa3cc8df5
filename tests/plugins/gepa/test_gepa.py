"""`algorithm = "gepa"`, whole: the real library, gateway, store, and a tiny model; a small server gives the proposals."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rules import (
    EVAL_TASKS,
    RULES,
    TASKS,
    adds_a_rule,
    asks_for_more_sometimes,
    asks_for_nothing,
    asks_twice,
    changes_its_prompt,
    fails_with_another_prompt,
    follows_rules,
    settings,
    stored,
    two_prompts,
)
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.capture.prompts import prompts_of
from agentlightning.cli.main import build
from agentlightning.config.schema import load_config
from agentlightning.errors import AgentError, ConfigError, EngineError
from agentlightning.training.job import make_job
from agentlightning.training.metrics import read_metrics
from agentlightning.training.train import train_config, train_job
from agentlightning.types import prompt_version
from judge_server import judge_server
from world import StopAfter


def test_a_search_raises_the_held_out_reward_with_an_interval_above_zero(model: str, tmp_path: Path) -> None:
    with judge_server(adds_a_rule) as server:
        run = agl.train(follows_rules, tasks=TASKS, eval_tasks=EVAL_TASKS, **settings(model, tmp_path, server, eval={"greedy": False}))
    result = json.loads((run.folder / "result.json").read_text())
    found = result["prompts"]
    assert result["finished"] is True
    assert found["default"] == {"system": "You work."}
    best = found["candidates"][found["candidate"]]
    assert found["best"] == best["prompts"]
    assert best["score"] > found["candidates"][0]["score"] == 0.0
    assert best["versions"] == {"system": prompt_version(found["best"]["system"])}
    change = result["best"]["change"]["sampled"]
    assert change["low"] > 0
    assert result["eval"]["sampled"]["after"] == pytest.approx(sum(rule in found["best"]["system"] for rule in RULES) / 4)
    for number, candidate in enumerate(found["candidates"][1:], 1):
        (parent,) = candidate["parents"]
        assert parent < number
        assert candidate["prompts"]["system"].startswith(found["candidates"][parent]["prompts"]["system"])
    rows = read_metrics(run.folder)
    assert [row["step"] for row in rows] == list(range(7))
    assert sum(row["rollouts"] for row in rows[1:]) == found["rollouts"] == len(stored(run.folder, mode="train"))
    assert all(row["trained_tokens"] == 0 for row in rows[1:])
    assert not any(any(step.glob("*.safetensors")) for step in (run.folder / "checkpoints").iterdir()), "no weights are written"
    assert run.checkpoint == Path(model).resolve()


def test_every_rollout_tells_the_prompts_it_ran_with_and_the_reflection_saw_its_records(model: str, tmp_path: Path) -> None:
    with judge_server(adds_a_rule) as server:
        run = agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, server, steps=2))
    rollouts = stored(run.folder, mode="train")
    texts = set[str]()
    for state, (records,) in rollouts:
        (call,) = records.calls
        assert call.messages is not None
        asked = prompts_of(records)
        assert asked == {"system": call.messages[0]["content"]}, "the note has the text that the model was sent"
        assert state.rollout.prompts in ({}, asked)
        assert records.rewards[0].value == float(state.rollout.task.input["rule"] in asked["system"]), "the record replays"
        texts.add(asked["system"])
    assert len(texts) > 1
    question = server.bodies[0]["messages"][0]["content"]
    for seen in ("You work.", "[user]", "Reward: 0.", "was needed", "### rule"):
        assert seen in question
    reflections = stored(run.folder, mode="production")
    assert [state.rollout.task.input["reflection"] for state, _ in reflections] == [
        body["messages"][0]["content"] for body in server.bodies
    ]


def test_a_template_is_what_the_reflecting_model_reads(model: str, tmp_path: Path) -> None:
    template = "```\n<prompt>\n```\nNotes:\n<notes>"
    with judge_server(adds_a_rule) as server:
        run = agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, server, algorithm={"template": template}))
    assert run.result["prompts"]["candidate"] > 0
    for body in server.bodies:
        asked = body["messages"][0]["content"]
        assert asked.startswith("```\nYou work.")
        assert "- The rule " in asked
        assert "[user]" not in asked
        assert "Task" not in asked
    with pytest.raises(ConfigError, match=r"algorithm\.template says nothing about the rollouts: 'Improve <prompt>'"):
        agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, None, algorithm={"template": "Improve <prompt>"}))


def test_the_served_model_itself_proposes_where_no_other_is_named(model: str, tmp_path: Path) -> None:
    more = {"steps": 1, "algorithm": {"reflection_tokens": 6, "trace_characters": 200}}
    run = agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, None, **more))
    ((state, (records,)),) = stored(run.folder, mode="production")
    assert state.status == "succeeded"
    assert len(records.completions[0].response_ids) <= 6
    tokens = sum(len(reply.prompt_ids) + len(reply.response_ids) for _, (one,) in stored(run.folder) for reply in one.completions)
    assert run.result["prompts"]["tokens"] == tokens


def test_a_stopped_and_resumed_search_has_the_candidates_of_one_that_was_not(model: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {"eval": {"every": 2, "greedy": False}}
    with judge_server(adds_a_rule) as server:
        whole = agl.train(two_prompts, tasks=TASKS, eval_tasks=EVAL_TASKS, **settings(model, tmp_path, server, **more))
        stopper, arguments = StopAfter(3), settings(model, tmp_path, server, **more)
        del arguments["progress"]
        job = make_job(two_prompts, tasks=TASKS, eval_tasks=EVAL_TASKS, **arguments)
        half = asyncio.run(train_job(job, progress=stopper, resume=None, stop=stopper.stop))  # type: ignore[arg-type]
        assert half.stopped
        assert half.result["steps"] == 3
        resumed = agl.train(
            two_prompts, tasks=TASKS, eval_tasks=EVAL_TASKS, resume=half.folder, **settings(model, tmp_path, server, **more)
        )
    assert resumed.result["prompts"] == whole.result["prompts"]
    assert len(whole.result["prompts"]["candidates"]) > 2
    changed = {
        name for each in whole.result["prompts"]["candidates"][1:] for name in each["prompts"] if each["prompts"] != two(each, whole)
    }
    assert changed == {"plan", "answer"}
    assert [row["step"] for row in read_metrics(resumed.folder)] == list(range(7))


def two(candidate: dict[str, Any], run: agl.Run) -> dict[str, str]:
    """The prompts of a candidate's parent."""
    return run.result["prompts"]["candidates"][candidate["parents"][0]]["prompts"]


def test_a_search_ends_before_it_exceeds_its_budget(model: str, tmp_path: Path) -> None:
    with judge_server(adds_a_rule) as server:
        by_rollouts = agl.train(
            follows_rules, tasks=TASKS, eval_tasks=EVAL_TASKS[:4], **settings(model, tmp_path, server, algorithm={"rollouts": 27})
        )
        by_tokens = agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, server, algorithm={"tokens": 1}))
        with pytest.raises(ConfigError, match="rollouts is 13, but scoring the agent's own prompts takes 4, and a step up to 10 more"):
            agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, server, algorithm={"rollouts": 13}))
    assert by_rollouts.result["prompts"]["rollouts"] <= 27
    assert by_rollouts.result["finished"] is True
    assert 1 <= by_rollouts.result["steps"] < 6
    assert "after" in by_rollouts.result["eval"]["sampled"], "the last step is evaluated, though the budget ended the search"
    assert by_tokens.result["steps"] == 1, "the step that reaches the number is the last"


def test_an_agent_that_asks_for_no_prompt_or_for_a_changing_one_is_an_error(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"asked for no prompt in 4 rollouts.*llm.prompt\('system'"):
        agl.train(asks_for_nothing, tasks=TASKS, **settings(model, tmp_path, None))
    with pytest.raises(ConfigError, match="not the same everywhere"):
        agl.train(changes_its_prompt, tasks=TASKS, **settings(model, tmp_path, None))
    with pytest.raises(ConfigError, match=r"not the same everywhere: 'First\.' and 'Second\.'"):
        agl.train(asks_twice, tasks=TASKS, **settings(model, tmp_path, None))


def test_an_agent_that_fails_with_a_proposal_rejects_it(model: str, tmp_path: Path) -> None:
    with judge_server(lambda body: "```\nAnother.\n```") as server:
        run = agl.train(fails_with_another_prompt, tasks=TASKS, **settings(model, tmp_path, server, steps=2))
    assert (run.result["finished"], run.result["prompts"]["rejected"]) == (True, 2)
    assert run.result["prompts"]["best"] == {"system": "You work."}
    assert run.result["prompts"]["unscored"] == 6


def test_a_prompt_outside_the_search_and_an_empty_reflection_are_said_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge_server(lambda body: "") as server:
        arguments = settings(model, tmp_path, server, steps=3, tasks_per_step=16)
        agl.train(asks_for_more_sometimes, tasks=TASKS, **{**arguments, "progress": True})
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert said.count("A rollout asked for prompts.rare") == 1
    assert said.count("The reflecting model returned no text") == 1


def test_tokens_that_nobody_counts_are_no_budget(tmp_path: Path) -> None:
    with judge_server(lambda body: "hello") as server:
        arguments = settings("strong", tmp_path, server, algorithm={"tokens": 100}, engine={"name": "upstream", "url": server.base_url})
        with pytest.raises(ConfigError, match=r"nobody counts the tokens of replies \(token ids missing.*Set algorithm\.rollouts"):
            agl.train(follows_rules, tasks=TASKS, **arguments)


def test_nothing_asks_a_teacher_in_a_search(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[teacher\] is set, but algorithm 'gepa' asks no teacher"):
        agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, None, teacher={"model": model}))


def test_an_endpoint_that_fails_stops_the_run_and_leaves_it_resumable(model: str, tmp_path: Path) -> None:
    from starlette.responses import JSONResponse

    failing = [False]

    def answer(body: dict[str, Any]) -> Any:
        return JSONResponse({"error": "down"}, 503) if failing[0] and len(server.bodies) > 1 else adds_a_rule(body)

    with judge_server(answer) as server:
        failing[0] = True
        with pytest.raises(EngineError, match=r"does not answer after 2 requests: HTTP 503.*resume the run"):
            agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, server))
        (folder,) = tmp_path.glob("*-run")
        failing[0] = False
        run = agl.train(follows_rules, tasks=TASKS, resume=folder, **settings(model, tmp_path, server))
    assert run.result["finished"] is True


def test_prompts_of_a_config_are_the_start_and_a_name_that_nobody_asks_for_is_told(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "system.txt").write_text("Always add.\n")
    arguments = settings(model, tmp_path / "runs", None, steps=1, algorithm={"reflection_tokens": 2, "trace_characters": 200})
    arguments |= {"prompts": {"system": str(tmp_path / "system.txt"), "sytem": "x"}, "progress": True}
    run = agl.train(follows_rules, tasks=TASKS, **arguments)
    assert run.result["prompts"]["default"] == {"system": "Always add."}
    assert run.result["prompts"]["candidates"][0]["score"] == 0.25
    assert load_config(run.folder / "config.toml").prompts == {"system": "Always add.", "sytem": "x"}
    assert "never asked for prompts.sytem; it asks for system" in re.sub(r"\s+", " ", capsys.readouterr().err)


def show(*arguments: str | Path) -> str:
    return CliRunner().invoke(build(), ["show", *map(str, arguments)], env={"COLUMNS": "200"}).stdout


def test_agl_show_prints_the_tree_and_the_held_out_change(model: str, tmp_path: Path) -> None:
    with judge_server(adds_a_rule) as server:
        run = agl.train(follows_rules, tasks=TASKS, eval_tasks=EVAL_TASKS, **settings(model, tmp_path, server, eval={"greedy": False}))
    shown = show(run.folder)
    candidates = run.result["prompts"]["candidates"]
    assert f"prompts: {len(candidates) - 1} accepted, " in shown
    for place, candidate in enumerate(candidates):
        assert re.search(rf"{place}  {candidate['score']:.3f}  .*system {candidate['versions']['system']}", shown)
    low = run.result["best"]["change"]["sampled"]["low"]
    assert f"held out, sampled: +{run.result['best']['change']['sampled']['mean']:.3f} (95% interval +{low:.3f}" in shown
    assert f"best system:\n{run.result['prompts']['best']['system']}" in shown
    assert "untrained" not in shown
    (run.folder / "result.json").unlink()  # as while it runs
    assert shown[shown.index("prompts: ") :] == (again := show(run.folder))[again.index("prompts: ") :]
    (state, _), *_ = stored(run.folder, mode="train")
    one = show(run.folder, state.rollout.id)
    assert f"prompt system {prompt_version('You work.')}" in one


def test_the_page_on_prompts_runs(model: str, tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "prompts.md").read_text()
    files = dict(re.findall(r"```\w+\n# (\w+\.\w+)\n(.*?)```", page, re.DOTALL))
    (tmp_path / "shop.py").write_text(files["shop.py"])
    with judge_server(lambda body: "```\nEnd with TOTAL.\n```") as server:
        config = files["config.toml"].replace('"smollm2-135m"', f'"{model}"').replace("steps = 10", "steps = 2")
        (tmp_path / "config.toml").write_text(config.replace("http://127.0.0.1:8001/v1", server.base_url))
        command = [sys.executable, "-m", "agentlightning", "train", "config.toml"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(server.bodies) == 2
    assert "prompts: 0 accepted, 2 rejected" in done.stdout
    assert "best system (the agent's own):\nYou are a shop assistant." in done.stdout


def test_an_agent_that_always_fails_is_an_error_and_no_zero(model: str, tmp_path: Path) -> None:
    async def broken(task: Any, llm: agl.LLM) -> float:
        raise ValueError(llm.prompt("system", default="You work."))

    with pytest.raises(AgentError, match="All 4 rollouts of the first step failed"):
        agl.train(broken, tasks=TASKS, **settings(model, tmp_path, None))


def test_weights_train_with_the_prompts_of_a_search(model: str, tmp_path: Path) -> None:
    with judge_server(adds_a_rule) as server:
        found = agl.train(follows_rules, tasks=TASKS, **settings(model, tmp_path, server, steps=3))
    run = agl.train(
        follows_rules, tasks=TASKS, model=model, folder=tmp_path, name="weights", steps=1, tasks_per_step=2, prompts=str(found.folder),
        algorithm=agl.LightningRL(group_size=2), sampling={"max_tokens": 2}, progress=False,
    )  # fmt: skip
    best = found.result["prompts"]["best"]
    assert [prompts_of(records) for _, (records,) in stored(run.folder)] == [best] * 4
    with pytest.raises(ConfigError, match="is no run"):
        agl.train(follows_rules, tasks=TASKS, model=model, prompts="nowhere", progress=False)


def test_a_program_in_any_language_gets_the_prompts_of_its_rollout(model: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import json, os, urllib.request\n"
        "task, prompts = json.loads(os.environ['AGL_TASK']), json.loads(os.environ['AGL_PROMPTS'])\n"
        "body = {'model': os.environ['AGL_MODEL'], 'max_tokens': 2, 'messages': [{'role': 'user', 'content': prompts['system']}]}\n"
        "headers = {'Authorization': 'Bearer ' + os.environ['OPENAI_API_KEY'], 'Content-Type': 'application/json'}\n"
        "url = os.environ['OPENAI_BASE_URL'] + '/chat/completions'\n"
        "urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)).read()\n"
        "print(float(task['rule'] in prompts['system']))\n"
    )
    (tmp_path / "tasks.jsonl").write_text("".join(f"{json.dumps(task)}\n" for task in TASKS))
    with judge_server(lambda body: "```\nadd carry check units\n```") as server:
        (tmp_path / "config.toml").write_text(
            f'command = "{sys.executable} program.py"\ntasks = "tasks.jsonl"\nmodel = "{model}"\nsteps = 1\ntasks_per_step = 2\n'
            'folder = "runs"\nprompts = { system = "You work." }\n'
            f'algorithm = {{ name = "gepa", validation = 2, reflection = {{ base_url = "{server.base_url}", model = "m" }} }}\n'
        )
        run = train_config(load_config(tmp_path / "config.toml"), progress=False)
    assert run.result["prompts"]["best"] == {"system": "add carry check units"}
    assert {prompts_of(records)["system"] for _, (records,) in stored(run.folder, mode="train")} == {"You work.", "add carry check units"}
