"""Canary secrets in a real run with real processes: none of them is in its store, run folder, logs, copies of the config, or answers."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from starlette.routing import Route
from test_remote_runners import Processes, processes, read_until

from agentlightning.config.schema import RunnerSettings
from agentlightning.gateway.server import gateway_app
from agentlightning.runner.remote import RunnerOrder, order_route
from agentlightning.stores.common import open_store
from agentlightning.stores.http_server import StoreServer
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Rollout, Task
from agentlightning_torch.testing import tiny_model

__all__ = ["processes"]
CANARIES = {name: f"canary-{name}-8d1f6c" for name in ("token", "openai", "anthropic", "proxy", "bearer", "header", "cookie", "query")}
PROBE = """
import json, os, sys, uuid
import httpx
task, canaries, key = json.load(sys.stdin), json.loads(os.environ["CANARIES"]), os.environ["OPENAI_API_KEY"]
base = os.environ["OPENAI_BASE_URL"]
secrets = {"x-canary": canaries["header"], "cookie": "session=" + canaries["cookie"], "x-api-key": canaries["header"]}
own, wrong = {"authorization": "Bearer " + key}, {"authorization": "Bearer " + canaries["bearer"]}
hello = {"model": os.environ["AGL_MODEL"], "messages": [{"role": "user", "content": task["text"]}], "max_tokens": 4}
root, answers = base.removesuffix("/v1"), []
with httpx.Client(params={"api_key": canaries["query"]}, timeout=60, trust_env=False) as client:
    def send(path, body, headers, method="POST"):
        answer = client.request(method, path, headers={**secrets, **headers}, content=json.dumps(body))
        answers.append([answer.status_code, answer.text, str(answer.headers)])
        return answer.status_code
    codes = [
        send(base + "/chat/completions", hello, {**wrong, "x-agl-key": key}),
        send(base + "/chat/completions", {**hello, "model": "other"}, own),
        send(base + "/chat/completions", {"messages": 3}, own),
        send(base + "/messages", {**hello, "max_tokens": "many"}, own),
        send(base + "/reward", "high", own),
        send(base + "/no/such/path", {}, own),
        send(base + "/chat/completions", hello, wrong),
        send(root + "/store/v1/claim", {}, wrong),
        send(root + "/store/v1/claim", {}, own),
        send(root + "/store/v1/claim", {}, {}),
        send(root + "/runner/v1/order", {}, own, "GET"),
        send(base + "/chat/completions", hello, {**own, "x-api-key": ""}),
    ]
with open(os.path.join(os.environ["PROBES"], uuid.uuid4().hex), "w") as file:
    json.dump({"codes": codes, "answers": answers, "environment": dict(os.environ), "key": key}, file)
print("the agent was here", file=sys.stderr)
print(len(task["text"]) / 10 + 0.01 * (hash(key) % 7))
"""
EXPECTED = [200, 404, 400, 400, 400, 404, 401, 401, 401, 401, 401, 200]


def environment(folder: Path) -> dict[str, str]:
    """Secrets where people have them."""
    return {
        "AGL_TOKEN": CANARIES["token"], "OPENAI_API_KEY": CANARIES["openai"], "ANTHROPIC_AUTH_TOKEN": CANARIES["anthropic"],
        "https_proxy": f"http://user:{CANARIES['proxy']}@127.0.0.1:9", "PROBES": str(folder / "probes"),
        "CANARIES": json.dumps({name: CANARIES[name] for name in ("bearer", "header", "cookie", "query")}),
    }  # fmt: skip


def run_with_canaries(folder: Path, processes: Processes) -> tuple[str, list[dict[str, Any]]]:
    """Train one step with a runner in another process. Returns what both printed, without the command for runners, and the probes."""
    (folder / "probes").mkdir()
    (folder / "probe.py").write_text(PROBE)
    (folder / "tasks.jsonl").write_text("".join(json.dumps({"id": text, "text": text}) + "\n" for text in ("ab", "abcdef")))
    config = {
        "command": f"{sys.executable} probe.py", "tasks": "tasks.jsonl", "model": tiny_model(folder / "tiny").path, "steps": 1,
        "tasks_per_step": 2, "algorithm": {"group_size": 2}, "host": "0.0.0.0", "runner": {"remote": True}, "address": None,
    }  # fmt: skip
    (folder / "config.toml").write_text(tomli_w.dumps({key: value for key, value in config.items() if value is not None}))
    train = processes.agl("train", "config.toml", **environment(folder))
    printed = read_until(train, "agl runner --store")
    words = shlex.split(printed.splitlines()[-1])
    assert CANARIES["token"] in words[3]  # the one place where it is meant to be
    words[3] = re.sub("@[^:]*:", "@127.0.0.1:", words[3])
    runner = processes.agl(*words[1:], **environment(folder))
    rest, _ = train.communicate(timeout=180)
    assert train.returncode == 0, rest
    runner.terminate()
    probes = [json.loads(file.read_text()) for file in (folder / "probes").iterdir()]
    return "\n".join([*printed.splitlines()[:-1], rest, runner.communicate(timeout=30)[0]]), probes


def places(folder: Path, secret: str) -> list[str]:
    """The files that hold a secret."""
    return [str(file) for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


@pytest.mark.slow
def test_no_secret_of_a_run_is_kept_printed_or_answered(tmp_path: Path, processes: Processes) -> None:
    output, probes = run_with_canaries(tmp_path, processes)
    assert [probe["codes"] for probe in probes] == [EXPECTED] * 4
    answers = json.dumps([probe["answers"] for probe in probes])
    for secret in CANARIES.values():
        assert places(tmp_path / "runs", secret) == []
        assert secret not in output
        assert secret not in answers
    for probe in probes:
        kept = places(tmp_path / "runs", probe["key"])
        assert {Path(file).name.removesuffix("-wal") for file in kept} <= {"store.db"}  # the gateway looks keys up there
        assert probe["key"] not in output
        assert probe["key"] not in answers
    assert "the agent was here" not in output


@pytest.mark.slow
def test_the_environment_of_an_agent_holds_its_own_key_and_no_token(tmp_path: Path, processes: Processes) -> None:
    _, probes = run_with_canaries(tmp_path, processes)
    for probe in probes:
        values = "\n".join(f"{name}={value}" for name, value in probe["environment"].items())
        assert set(re.findall(r"agl-[\w-]{20,}", values)) == {probe["key"]}
        for name in ("token", "openai", "anthropic"):
            assert CANARIES[name] not in values
    assert len({probe["key"] for probe in probes}) == 4


OPEN = {"/health", "/ready", "/healthz", "/v1/healthz", "/models", "/models/{name:path}", "/v1/models", "/v1/models/{name:path}",
        "/v1/v1/models", "/v1/v1/models/{name:path}"}  # fmt: skip
"""Routes that anybody may ask: the name of the model, and whether the server lives."""


async def test_every_route_but_the_named_ones_asks_for_a_key_and_a_key_ends_with_its_attempt(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    store = open_store("memory:")
    server = StoreServer(store, "the-token")
    order = order_route(server, RunnerOrder(model="m", settings=RunnerSettings()))
    app = gateway_app(store, ScriptedEngine(tmp_path, lambda prompt, sampling: "hi"), extra_routes=[*server.routes, order])
    attempt = await store.begin(Rollout(task=Task("1", None), mode="train"), "test", lease=60)
    hello = [{"role": "user", "content": "hi"}]
    questions = {"responses": {"input": "hi"}, "messages": {"messages": hello, "max_tokens": 9}, "count_tokens": {"messages": hello}}
    bodies = {"chat/completions": {"messages": hello}, "v1/completions": {"prompt": "hi"}, **questions}

    def body(path: str) -> Any:
        question = next((question for end, question in bodies.items() if f"/v1{path}".endswith(end)), {})
        return {"model": "scripted", **question}

    own = {"authorization": f"Bearer {attempt.key}"}

    async def codes(client: httpx.AsyncClient, headers: dict[str, str]) -> dict[str, int]:
        """The status of each route's answer."""
        found: dict[str, int] = {}
        for route in app.routes:
            assert isinstance(route, Route)
            [method] = (route.methods or set()) - {"HEAD"}
            answer = await client.request(method, route.path.replace("{method}", "claim"), json=body(route.path), headers=headers)
            found[route.path] = answer.status_code
        return found

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
        assert (await client.post("/v1/chat/completions", json=body("/chat/completions"), headers=own)).status_code == 200
        await store.finish(attempt.id, "succeeded")
        for headers in ({}, {"authorization": "Bearer wrong"}, own):
            answered = {path for path, code in (await codes(client, headers)).items() if code != 401}
            assert answered - OPEN == ({path for path in answered if path.endswith("/calls")} if headers is own else set())
    assert len(app.routes) > 30
    await store.close()
