"""`--log-format json`, with real processes: every line of stderr is an object, with the ids of its rollout, and without a secret."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentlightning.telemetry.logs import JSONFormatter, set_log_ids
from agentlightning_torch.testing import tiny_model

TOKEN = "open-sesame-42"
AGENT = """
import logging
import openai

log = logging.getLogger("my_agent")

def solve(task, llm):
    client = openai.OpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0)
    log.warning("asking with the key %s", llm.api_key)
    answer = client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task}], max_tokens=3)
    if task == "bad":
        raise ValueError(f"no answer at http://user:{llm.api_key}@example.com/")
    return float(len(answer.choices[0].message.content) % 2)
"""


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_logs_objects_with_the_ids_of_their_rollouts_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "my_agent.py").write_text(AGENT)
    model = tiny_model(tmp_path / "model").path
    (tmp_path / "run.toml").write_text(
        f'agent = "my_agent:solve"\ntasks = "tasks.jsonl"\nmodel = "{model}"\nsteps = 1\ntasks_per_step = 2\n'
        "[algorithm]\ngroup_size = 2\n[runner]\nremote = true\nworkers = 1\nattempts = 1\n"
    )
    (tmp_path / "tasks.jsonl").write_text('"bad"\n"good"\n')
    environment = {**os.environ, "AGL_TOKEN": TOKEN, "OPENAI_API_KEY": "my-own-key-of-openai", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "agentlightning", "--log-format", "json", "train", "run.toml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    lines = lines_of(ran.stderr)
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    asking = [line for line in lines if line["logger"] == "my_agent"]  # of a worker process
    assert len(asking) == 4
    assert {line["message"] for line in asking} == {"asking with the key ***"}
    assert len({line["attempt_id"] for line in asking}) == 4
    assert all(line["rollout_id"] for line in asking)
    calls = [line for line in lines if line["logger"] == "agentlightning.gateway" and "call_id" in line]
    assert {line["attempt_id"] for line in calls} == {line["attempt_id"] for line in asking}
    assert len({line["call_id"] for line in calls}) == 4
    (step,) = [line for line in lines if line["message"].startswith("step 1/1")]
    assert step["metrics"]["step"] == 1
    failed = [line for line in lines if line["message"].startswith("Attempt 1 ended as failed: ValueError")]
    assert len(failed) == 2
    assert any("agl runner --store" in line["message"] for line in lines)
    for secret in (TOKEN, "my-own-key-of-openai", "agl-"):
        assert secret not in ran.stderr


def test_without_the_option_the_terminal_stays_as_it_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agentlightning", "show", "missing"]
    plain = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert plain.stderr.startswith("error: ")
    logged = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "AGL_LOG_FORMAT": "json"}
    )
    assert logged.returncode == plain.returncode
    (line,) = lines_of(logged.stderr)
    assert line["level"] == "error"
    assert line["message"] in " ".join(plain.stderr.split())
    wrong = subprocess.run([*command[:3], "--log-format", "yaml", "show"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2


def test_a_store_server_logs_its_address_without_the_token(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "agentlightning", "--log-format", "json", "store", "serve", "agl.db", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "AGL_TOKEN"}
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert refused.returncode == 2
    assert "Set AGL_TOKEN" in lines_of(refused.stderr)[0]["message"]
    server = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**environment, "AGL_TOKEN": TOKEN}
    )
    assert server.stderr is not None
    line = json.loads(server.stderr.readline())
    address = line["message"].removeprefix("serving the store at ")
    assert address.startswith("http://***@127.0.0.1:")
    deadline = time.monotonic() + 20
    while httpx.get(address.replace("***@", "") + "/health").status_code != 200:
        assert time.monotonic() < deadline
    server.send_signal(signal.SIGTERM)
    out, _ = server.communicate(timeout=20)
    assert out == ""


def test_secrets_of_any_form_are_hidden_also_in_tracebacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", 'se"cret\\word')
    monkeypatch.setenv("MY_API_KEY", "hush-hush")
    record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "Authorization: Bearer %s", ("abc.DEF-123",), None)
    record.headers = {
        "x-api-key": "sk-ant-0123456789abcdefgh",
        "dsn": "postgresql://agl:pass@db/agl",
        "password": 'se"cret\\word',
        "rows": [1, float("nan")],
    }
    try:
        raise RuntimeError("token hush-hush refused \udcff")
    except RuntimeError:
        record.exc_info = sys.exc_info()
    text = JSONFormatter().format(record)
    line = json.loads(text)
    assert line["message"] == "Authorization: Bearer ***"
    assert line["headers"] == {"x-api-key": "***", "dsn": "postgresql://***@db/agl", "password": "***", "rows": [1, None]}
    assert "token *** refused" in line["exception"]
    assert line["level"] == "error"
    assert line["time"].endswith("Z")


def test_ids_belong_to_the_task_that_set_them() -> None:
    import contextvars

    def inside() -> dict[str, Any]:
        set_log_ids(rollout_id="r")
        set_log_ids(call_id="c")
        return json.loads(JSONFormatter().format(logging.makeLogRecord({"msg": "hi"})))

    line = contextvars.copy_context().run(inside)
    assert (line["rollout_id"], line["call_id"]) == ("r", "c")
    assert "rollout_id" not in json.loads(JSONFormatter().format(logging.makeLogRecord({"msg": "hi"})))
