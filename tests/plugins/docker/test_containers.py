"""Rollouts in real containers: what they reach, what they may use, and that none outlives its rollout."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentlightning.contracts.store import AttemptRecords, LightningStore
from agentlightning.gateway import Gateway
from agentlightning.runner.runner import Runner
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Rollout, Sampling, Task
from agentlightning_docker.agent import ContainerAgent
from agentlightning_docker.function import Function
from agentlightning_docker.inside import PORT
from agentlightning_docker.settings import DockerSettings
from conftest import Containers

ASK = """
import json, os, sys
from openai import OpenAI
task = json.load(sys.stdin)
answer = OpenAI().chat.completions.create(model=os.environ["AGL_MODEL"], messages=[{"role": "user", "content": str(task)}])
print("said", answer.choices[0].message.content)
print(0.5)
"""


class Shop:
    """A store, the real gateway over a scripted engine, and a runner whose rollouts are containers."""

    def __init__(self, store: LightningStore, gateway: Gateway, containers: Containers, folder: Path) -> None:
        self.store, self.gateway, self.containers, self.folder = store, gateway, containers, folder

    def program(self, text: str, *words: str) -> list[str]:
        """The command line of a Python program that the container sees."""
        file = self.folder / f"program{len(list(self.folder.iterdir()))}.py"
        file.write_text(text)
        return ["python3", f"/programs/{file.name}", *words]

    def settings(self, **settings: Any) -> DockerSettings:
        options = ["--volume", f"{self.folder}:/programs:ro", *settings.pop("options", ())]
        table = self.containers.table(options=options, **settings)
        return DockerSettings(**{**table, "options": tuple(table["options"])})

    async def run(self, program: list[str] | Function, *tasks: Any, reward: Any = "stdout", **settings: Any) -> list[AttemptRecords]:
        """The last attempts of rollouts of these tasks, when all have ended."""
        rollouts = [Rollout(task=Task(str(n), task), mode="train", sampling=Sampling(), max_attempts=1) for n, task in enumerate(tasks)]
        await self.store.add(rollouts)
        own = self.settings(**settings)
        with ContainerAgent(self.containers.engine, own, program, reward) as agent:
            runner = asyncio.create_task(Runner(self.store, agent, self.gateway.llm, own).run())
            try:
                async with asyncio.timeout(90):
                    cursor = 0
                    while (await self.store.list(status=["queued", "running"]))[0]:
                        assert not runner.done()
                        cursor = await self.store.wait(cursor)
            finally:
                runner.cancel()
                await asyncio.gather(runner, return_exceptions=True)
        return [(await self.store.read(rollout.id))[1][-1] for rollout in rollouts]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture
async def shop(tokenizer_folder: Path, tmp_path: Path, containers: Containers) -> AsyncIterator[Shop]:
    store = open_store("memory:")
    gateway = Gateway(store, ScriptedEngine(tokenizer_folder, lambda prompt, sampling: "it is five"))
    await gateway.start()
    (tmp_path / "programs").mkdir()
    yield Shop(store, gateway, containers, tmp_path / "programs")
    await gateway.stop()


def ended(records: AttemptRecords) -> tuple[str, list[float], str]:
    return records.attempt.status, [reward.value for reward in records.rewards], records.attempt.error or ""


async def test_an_unchanged_program_is_recorded_and_its_last_line_is_the_reward(shop: Shop) -> None:
    [records] = await shop.run(shop.program(ASK), {"ask": "2+3?"})
    assert ended(records) == ("succeeded", [0.5], "")
    assert [call.status for call in records.calls] == ["completed"]
    assert shop.containers.names() == []


REACH = """
import json, os, socket, sys, urllib.request
hosts, ports = json.load(sys.stdin)
def opens(host, port):
    try:
        socket.create_connection((host, port), timeout=2).close()
        return True
    except OSError:
        return False
reached = [f"{host}:{port}" for host in hosts for port in ports if opens(host, port)]
with open("/proc/net/dev") as file:
    devices = [line.split(":")[0].strip() for line in file if ":" in line]
def names():
    try:
        return socket.getaddrinfo("example.com", 80)
    except OSError:
        return []
health = urllib.request.urlopen(os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + "/health").status
unused = ("lo", "tunl", "sit", "ip", "gre", "erspan")  # those that a kernel puts into every network, switched off
print("FOUND", json.dumps([reached, [device for device in devices if not device.startswith(unused)], names(), health]))
sys.exit(3)
"""


async def test_a_container_reaches_the_gateway_and_nothing_else(shop: Shop) -> None:
    own = socket.create_server(("0.0.0.0", 0))
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()
    hosts = ["127.0.0.1", "localhost", socket.gethostname(), "host.containers.internal", "host.docker.internal", "10.88.0.1", "172.17.0.1",
             "1.1.1.1", *addresses]  # fmt: skip
    ports = [own.getsockname()[1], int(shop.gateway.base_url.split(":")[2].split("/")[0]), 22, 53, 80]
    assert not {PORT} & set(ports)
    [records] = await shop.run(shop.program(REACH), [hosts, ports])
    own.close()
    assert records.attempt.error is not None
    assert json.loads(records.attempt.error.split("FOUND ")[1].splitlines()[0]) == [[], [], [], 200]


SECRETS = """
import os, sys
from pathlib import Path
seen = [os.environ]
for file in ["/proc/1/environ", "/proc/1/cmdline", *map(str, Path("/agl").iterdir())]:
    try:
        seen.append(Path(file).read_text())
    except OSError:
        pass
own = os.environ["OPENAI_API_KEY"]
assert own in str(seen)
print("NAMES", sorted(map(str, Path("/agl").iterdir())))
try:
    Path("/agl/task.json").write_text("changed")
except OSError:
    print("closed")
print(float(any(backwards[::-1] in str(seen) for backwards in sys.argv[1:])))
"""


async def test_a_container_sees_no_variable_of_the_runner_and_no_key_of_another_attempt(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = ["canary-of-the-environment", "canary-of-the-proxy", "canary-token"]
    monkeypatch.setenv("SOME_SECRET", secrets[0])
    monkeypatch.setenv("https_proxy", f"http://user:{secrets[1]}@proxy:3128")
    monkeypatch.setenv("AGL_TOKEN", secrets[2])
    await shop.store.add([Rollout(task=Task("other", None), mode="train", max_attempts=1)])
    [(_, other)] = await shop.store.claim("somebody", lease=300, limit=1)
    attempts = asyncio.create_task(shop.run(shop.program(SECRETS, *(secret[::-1] for secret in (*secrets, other.key))), 1, 2))
    while len((await shop.store.list(status=["succeeded", "failed"]))[0]) < 2:
        await asyncio.sleep(0.1)
    await shop.store.finish(other.id, "cancelled")
    for records in await attempts:
        assert ended(records) == ("succeeded", [0.0], "")


MANY = """
import os, time
count = 0
try:
    while count < 200 and (os.fork() or time.sleep(60) or os._exit(0)):
        count += 1
except OSError:
    pass
print(count)
"""


async def test_a_container_has_no_more_processes_than_its_limit(shop: Shop) -> None:
    [records] = await shop.run(shop.program(MANY), 1, processes=40)
    [count] = [reward.value for reward in records.rewards]
    assert 20 < count < 40


BOMB = """
import json, os, sys, time
if json.load(sys.stdin) != "bomb":
    exec(open("/programs/ask.py").read().replace("json.load(sys.stdin)", "1"))
    sys.exit()
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""


async def test_a_fork_bomb_costs_its_own_attempt_only(shop: Shop) -> None:
    (shop.folder / "ask.py").write_text(ASK)
    bomb, good = await shop.run(shop.program(BOMB), "bomb", "good", timeout=15.0, processes=40)
    assert ended(good) == ("succeeded", [0.5], "")
    assert bomb.attempt.status == "timed_out"
    assert shop.containers.names() == []


HOG = """
import json, sys
if json.load(sys.stdin) == "hog":
    held = [bytearray(10_000_000) for _ in range(500)]
print(1)
"""


async def test_a_memory_hog_costs_its_own_attempt_only_and_the_error_names_the_limit(shop: Shop) -> None:
    hog, good = await shop.run(shop.program(HOG), "hog", "good", memory="100m")
    assert ended(good) == ("succeeded", [1.0], "")
    assert hog.attempt.status == "failed"
    assert "The container reached its memory limit of 100m, and the kernel ended a process." in (hog.attempt.error or "")


STUBBORN = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
print("I stay", flush=True)
while True:
    time.sleep(1)
"""


async def test_a_container_that_outlives_its_time_is_killed(shop: Shop) -> None:
    [records] = await shop.run(shop.program(STUBBORN), 1, timeout=3.0)
    assert records.attempt.status == "timed_out"
    assert "I stay" in (records.attempt.error or "")
    assert shop.containers.names() == []


async def test_a_container_ends_itself_when_its_time_is_over_and_nobody_kills_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentlightning_docker.container.LATE", -58.0)
    [records] = await shop.run(shop.program(STUBBORN), 1, timeout=60.0)
    assert records.attempt.status == "failed"
    assert "from outside" in (records.attempt.error or "")


ATTACK = """
import os, signal, socket, sys
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGCHLD):
    try:
        os.kill(1, number)
    except OSError:
        pass
watch = socket.socket(socket.AF_UNIX)
watch.connect("/agl/watch.sock")
try:
    watch.send(b'{"code": 0, "memory": false}\\n')
except OSError:
    pass
try:
    open("/proc/1/mem", "r+b")
    print("open")
except OSError:
    print("closed")
print("memory", flush=True)
sys.exit(7)
"""


async def test_an_agent_cannot_stop_or_impersonate_the_first_process(shop: Shop) -> None:
    [records] = await shop.run(shop.program(ATTACK), 1)
    assert records.attempt.status == "failed"
    assert "exited with code 7" in (records.attempt.error or "")
    assert "closed\nmemory" in (records.attempt.error or "")


@pytest.mark.parametrize(
    ("text", "reward", "expected"),
    [
        ("raise SystemExit(0)", "exit_code", ("succeeded", [1.0])),
        ("raise SystemExit(125)", "exit_code", ("succeeded", [0.0])),
        ("import os; open(os.environ['AGL_REWARD_FILE'], 'w').write('0.25')", "file", ("succeeded", [0.25])),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit_code", ("failed", [])),
    ],
)
async def test_every_source_of_a_reward_works(shop: Shop, text: str, reward: str, expected: Any) -> None:
    [records] = await shop.run(shop.program(text), 1, reward=reward)
    assert ended(records)[:2] == expected


async def test_a_program_that_the_image_lacks_is_named(shop: Shop) -> None:
    [records] = await shop.run(["no-such-program"], 1, reward="exit_code")
    assert records.attempt.status == "failed"
    assert "the program 'no-such-program' cannot be started in the image: No such file or directory" in (records.attempt.error or "")


async def test_a_container_that_does_not_start_is_no_reward(shop: Shop) -> None:
    [records] = await shop.run(["true"], 1, reward="exit_code", options=["--user", "nobody-of-this-name"])
    assert records.attempt.status == "failed"
    assert "The container did not start" in (records.attempt.error or "")


FUNCTION = """
import agentlightning as agl
from openai import OpenAI

def solve(task, llm):
    if task == "raise":
        agl.reward(0.1, name="before")
        raise ValueError("of the agent")
    client = OpenAI(base_url=llm.base_url, api_key=llm.api_key)
    answer = client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task}])
    agl.note(answer.choices[0].message.content)
    return 0.75
"""


async def test_a_function_of_the_image_runs_with_its_spans_and_rewards(shop: Shop) -> None:
    (shop.folder / "their_agent.py").write_text(FUNCTION)
    options = ["--env", "PYTHONPATH=/programs"]
    good, bad = await shop.run(Function(agent="their_agent:solve"), "2+3?", "raise", options=options)
    assert ended(good) == ("succeeded", [0.75], "")
    assert ([span.name for span in good.spans], len(good.completions)) == (["it is five"], 1)
    assert (bad.attempt.status, [reward.name for reward in bad.rewards]) == ("failed", ["before"])
    assert "ValueError: of the agent" in (bad.attempt.error or "")
