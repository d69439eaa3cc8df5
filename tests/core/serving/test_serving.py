"""`agl serve`: a model as an OpenAI endpoint beside the store that its calls are recorded in."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, AuthenticationError, OpenAI

import agentlightning as agl
from agentlightning.cli.main import main
from agentlightning.config.schema import load_config
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import UnsupportedSetting
from agentlightning.serving.serve import served_model
from agentlightning.stores.common import open_store
from agentlightning.training.dry_run import dry_run
from agentlightning.training.progress import Progress
from agentlightning.training.score import rollout_config
from agentlightning_torch.testing import tiny_model


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What `agl serve MODEL` says of itself, and the folder it runs in."""
    folder = tmp_path_factory.mktemp("serve")
    tiny_model(folder / "model")
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("agl")), "serve", str(folder / "model"), "--port", "0", "--max-body-mb", "1"],
        cwd=folder,
        env={**os.environ, "AGL_STORE": f"sqlite:{folder / 'served.db'}", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = {"folder": str(folder)}
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
        name, _, value = line.strip().partition(" ")
        said[name] = value.strip()
    yield said
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    process.stdout.close()


async def test_a_call_with_the_token_is_answered_and_recorded_as_production(served: dict[str, str]) -> None:
    with OpenAI(base_url=served["base_url"], api_key=served["api_key"]) as client:
        answer = client.chat.completions.create(model=served["model"], messages=[{"role": "user", "content": "hi"}], max_tokens=5)
    store = open_store(served["store"])
    try:
        states, _ = await store.list(mode="production")
        _, [records] = await store.read(states[-1].rollout.id)
    finally:
        await store.close()
    assert records.calls[0].id == answer.system_fingerprint
    assert len(records.completions[0].response_ids) <= 5


def test_the_page_shows_the_calls_to_those_who_have_the_key(served: dict[str, str]) -> None:
    question = "What does the page show?"
    with OpenAI(base_url=served["base_url"], api_key=served["api_key"]) as client:
        client.chat.completions.create(model=served["model"], messages=[{"role": "user", "content": question}], max_tokens=5)
    address, _, secret = served["page"].partition("#token=")
    with httpx.Client(base_url=address) as browser:
        assert "<title>Agent Lightning</title>" in browser.get("/").text
        assert browser.get("/view/api/runs").status_code == 401
        assert browser.post("/view/login", content=secret).status_code == 204
        (store,) = browser.get("/view/api/runs").json()["stores"]
        rows = browser.get("/view/api/rollouts", params={"source": store["name"]}).json()["rows"]
    assert (rows[0]["start"], rows[0]["mode"], rows[0]["calls"]) == (question, "production", 1)


def test_a_body_over_the_limit_of_the_option_is_refused(served: dict[str, str]) -> None:
    body = b" " * 2**20 + b"{}"
    answer = httpx.post(f"{served['base_url']}/messages", content=body, headers={"x-api-key": served["api_key"]})
    assert (answer.status_code, answer.json()["error"]["message"][:38]) == (413, "The body has more than 1048576 bytes. ")


def test_a_path_that_nobody_serves_names_those_that_are(served: dict[str, str]) -> None:
    answer = httpx.post(f"{served['base_url']}/embeddings", headers={"x-api-key": served["api_key"]})
    assert (answer.status_code, "POST /v1/chat/completions, " in answer.json()["error"]["message"]) == (404, True)


def test_a_call_without_the_token_is_refused(served: dict[str, str]) -> None:
    with (
        OpenAI(base_url=served["base_url"], api_key="foreign", max_retries=0) as client,
        pytest.raises(AuthenticationError, match="three ways"),
    ):
        client.chat.completions.create(model=served["model"], messages=[{"role": "user", "content": "hi"}])


async def test_an_upstream_is_served_and_scored_by_a_rollout_and_not_trained(
    served: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`agl serve --model` of the fixture is the upstream of an `agl rollout`."""
    monkeypatch.setenv("THEIR_KEY", served["api_key"])
    (tmp_path / "asker.py").write_text(
        "from openai import AsyncOpenAI\n\n\n"
        "async def solve(task, llm):\n"
        "    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:\n"
        "        messages = [{'role': 'user', 'content': task}]\n"
        "        answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=5)\n"
        "    return float(bool(answer.choices))\n"
    )
    (tmp_path / "tasks.jsonl").write_text('"one"\n"two"\n')
    (tmp_path / "run.toml").write_text(
        f'agent = "asker:solve"\ntasks = "tasks.jsonl"\nmodel = "{served["model"]}"\nfolder = "runs"\n'
        f'engine = {{ name = "upstream", url = "{served["base_url"]}", key_env = "THEIR_KEY" }}\n'
    )
    config = load_config(tmp_path / "run.toml")
    report = await asyncio.to_thread(rollout_config, config)
    assert (report.reward, report.requests) == (1.0, {"completed": 2})
    assert report.sampled_tokens
    with pytest.raises(UnsupportedSetting, match="no trainer can change them"):
        await asyncio.to_thread(dry_run, config)
    assert served["api_key"] not in "".join(each.read_text() for each in report.folder.glob("*.toml"))
    store = open_store(f"sqlite:{report.folder / 'store.db'}")
    try:
        states, _ = await store.list(mode="eval")
        records = [(await store.read(state.rollout.id))[1][0] for state in states]
    finally:
        await store.close()
    assert all(each.calls[0].context == "upstream" and len(each.completions[0].response_ids) for each in records)


class Plain(BaseHTTPRequestHandler):
    """A server in OpenAI's form that tells no token ids."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
        body = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "theirs", "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_tokens_that_an_upstream_does_not_tell_are_missing_in_the_report_not_zero(tmp_path: Path) -> None:
    (tmp_path / "plain_asker.py").write_text(
        "from openai import OpenAI\n\n\n"
        "def solve(task, llm):\n"
        "    client = OpenAI(base_url=llm.base_url, api_key=llm.api_key)\n"
        "    client.chat.completions.create(model=llm.model, messages=[{'role': 'user', 'content': task}])\n"
        "    return 1.0\n"
    )
    (tmp_path / "tasks.jsonl").write_text('"one"\n')
    server = ThreadingHTTPServer(("127.0.0.1", 0), Plain)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        (tmp_path / "run.toml").write_text(
            'agent = "plain_asker:solve"\ntasks = "tasks.jsonl"\nmodel = "theirs"\nfolder = "runs"\n'
            f'engine = {{ name = "upstream", url = "{url}" }}\n'
        )
        report = rollout_config(load_config(tmp_path / "run.toml"))
    finally:
        server.shutdown()
        server.server_close()
    assert (report.requests, report.sampled_tokens) == ({"completed": 1}, None)
    assert "sampled_tokens" not in json.loads((report.folder / "result.json").read_text())


def test_serve_forwards_to_an_upstream_under_the_names_that_it_has(served: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("agl")),
            "serve",
            "--upstream",
            served["base_url"],
            "--upstream-key-env",
            "THEIRS",
            "--port",
            "0",
        ],
        cwd=tmp_path,
        env={**os.environ, "AGL_STORE": f"sqlite:{tmp_path / 'own.db'}", "THEIRS": served["api_key"], "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said: dict[str, str] = {}
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
        name, _, value = line.strip().partition(" ")
        said[name] = value.strip()
    try:
        assert said["model"] == "as the agent asks"
        with OpenAI(base_url=said["base_url"], api_key=said["api_key"]) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            answer = client.chat.completions.create(model=served["model"], messages=messages, max_tokens=5)
            stream = client.chat.completions.create(model=served["model"], messages=messages, max_tokens=5, stream=True)
            assert [chunk.choices[0].finish_reason for chunk in stream][-1]
        assert answer.choices
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
        process.stdout.close()


def test_a_run_and_an_upstream_together_are_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, expected in (
        (["latest", "--upstream", "http://host/v1"], "takes one of MODEL and --upstream"),
        (["--model", "m", "--upstream-key-env", "X"], "Add --upstream URL"),
        (["--upstream", "host"], "Set it to the base_url"),
    ):
        monkeypatch.setattr(sys, "argv", ["agl", "serve", *arguments])
        with pytest.raises(SystemExit):
            main()
        assert expected in " ".join(capsys.readouterr().err.split())


async def test_a_rollout_elsewhere_records_its_calls_there(served: dict[str, str]) -> None:
    def run() -> str:
        with agl.rollout("task", store=served["store"], model=served["model"]) as rollout:
            llm = rollout.llm
            with OpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
                client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": "hi"}], max_tokens=5)
            agl.reward(0.75)
        return rollout.id

    rollout_id = await asyncio.to_thread(run)
    store = open_store(f"sqlite:{served['folder']}/served.db")
    try:
        state, [records] = await store.read(rollout_id)
    finally:
        await store.close()
    assert state.status == "succeeded"
    assert len(records.completions) == 1
    assert records.rewards[0].value == 0.75


def test_a_port_in_use_is_named(served: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    port = served["base_url"].rsplit(":", 1)[1].removesuffix("/v1")
    monkeypatch.chdir(served["folder"])
    monkeypatch.setattr(sys, "argv", ["agl", "serve", "--model", served["folder"] + "/model", "--port", port])
    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == 1
    assert f"Another program may use port {port}" in " ".join(capsys.readouterr().err.split())


def test_a_run_is_served_with_the_version_that_was_trained_under_the_name_that_it_was_trained_as(tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny")

    async def solve(task: str, llm: agl.LLM) -> float:
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
            messages = [{"role": "user", "content": task}]
            answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=6)  # type: ignore[arg-type]
        return sum(each.isalpha() for each in answer.choices[0].message.content or "") / 6

    run = agl.train(solve, tasks=["a", "b"], model=str(tmp_path / "tiny"), folder=tmp_path, steps=2, tasks_per_step=2, progress=False)
    files, engine, policy, *_ = served_model(str(run.folder), Progress())
    assert (files.name, files.path, engine["name"]) == ("tiny", str(run.checkpoint), "torch")
    assert policy is not None
    assert (policy.version, policy.uri) == (run.result["policy_version"], f"file:{run.checkpoint}")


def finished(folder: Path, config: str, result: dict[str, Any]) -> str:
    """A run folder as far as serving reads it."""
    folder.mkdir()
    (folder / "config.toml").write_text(f'agent = "a:b"\ntasks = "tasks.jsonl"\n{config}')
    (folder / "result.json").write_text(json.dumps({"finished": True, **result}))
    return str(folder)


def test_a_search_for_prompts_is_served_where_its_model_is_not_a_folder(tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny")
    found = {
        "policy_step": 0,
        "policy_version": 0,
        "policy_reason": "The run trained no weights.",
        "prompts": {"best": {"system": "Be brief."}},
    }
    upstream = 'model = "gpt-4o"\nengine = { name = "upstream", url = "http://127.0.0.1:9/v1" }\n'
    served = served_model(finished(tmp_path / "searched-upstream", upstream, found), Progress())
    assert (served.files, served.engine["name"], served.prompts) == (ModelFiles("gpt-4o", ""), "upstream", {"system": "Be brief."})
    served = served_model(finished(tmp_path / "searched", f'model = "{tmp_path / "tiny"}"\n', found), Progress())
    assert (served.files.path, served.policy, served.prompts) == (str(tmp_path / "tiny"), None, {"system": "Be brief."})


def test_a_run_of_several_policies_serves_its_prompts(tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny")
    config = (
        f'model = "{tmp_path / "tiny"}"\nprompts = {{ system = "Be brief." }}\n[trainer]\ntrain = "lora"\n[policies.a]\nagents = ["a"]\n'
    )
    served = served_model(finished(tmp_path / "several", config, {"policies": {"a": {"version": 0}}}), Progress())
    assert served.base is not None
    assert (served.base().files, served.base().policies) == (served.files, ())
    assert (served.prompts, served.choice.names) == ({"system": "Be brief."}, ("a",))
