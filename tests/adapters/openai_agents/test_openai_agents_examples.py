"""The SDK's official examples, unmodified, from the source distribution of the version that is installed.

They are fetched once into the temporary folder and not kept in the repository. Each runs as `__main__` within a rollout, reads what a
person would type, and speaks either API; the replies are a function of the prompt.
"""

from __future__ import annotations

import asyncio
import io
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from adapter_world import World, problems
from agents_world import Prompt

from agentlightning.gateway import Gateway
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.telemetry.store_app import store_app
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.types import Sampling

pytestmark = pytest.mark.usefixtures("installed")


@pytest.fixture(scope="session")
def examples() -> Path:
    """The root of the source distribution, with the folder `examples`."""
    name = f"openai_agents-{version('openai-agents')}"
    kept = Path(tempfile.gettempdir()) / "agentlightning-tests" / name
    if not (kept / "examples").is_dir():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "openai-agents", "-d", folder]
            try:
                subprocess.run([*command, name.replace("openai_agents-", "openai-agents==")], capture_output=True, check=True, timeout=150)
            except (subprocess.SubprocessError, OSError) as error:
                said = getattr(error, "stderr", None) or b""
                pytest.skip(f"the source distribution of {name} cannot be fetched: {error} {said.decode(errors='replace')[-300:]}")
            with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
                inside = [member for member in archive.getmembers() if member.name.startswith(f"{name}/examples/")]
                archive.extractall(folder, inside, filter="data")
            kept.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.move(f"{folder}/{name}", kept)
            except OSError:  # another process of the same tests was first
                assert (kept / "examples").is_dir()
    return kept


@dataclass(frozen=True)
class Program:
    path: str
    typed: tuple[str, ...]
    """Lines on standard input. A program that goes on asking ends at its end, by an EOFError of its own."""
    script: Callable[[Prompt], str]
    calls: dict[str, int]
    """Requests by agent."""
    says: str
    """Part of what it prints."""
    endless: bool = False


def routing(prompt: Prompt) -> str:
    return "CALL transfer_to_french_agent()" if "transfer_to_french_agent" in prompt.tools else f"Bonsoir, {prompt.last}"


def translating(prompt: Prompt) -> str:
    if prompt.tools and prompt.role == "user":
        return "CALL translate_to_spanish(Hello)\nCALL translate_to_french(Hello)"
    return f"{prompt.system[-10:]}: {prompt.last}"


def judging(prompt: Prompt) -> str:
    if "JSON schema" in prompt.system:
        enough = any("Feedback: more stars" in said for _, said in prompt.turns)
        return '{"response": {"feedback": "more stars", "score": "%s"}}' % ("pass" if enough else "needs_improvement")
    return "a story with stars" if "more stars" in prompt.last else "a story"


def guarding(prompt: Prompt) -> str:
    if "JSON schema" in prompt.system:
        return '{"reasoning": "it says so", "is_math_homework": %s}' % ("true" if "solve" in prompt.last else "false")
    return "Sacramento."


def telling(prompt: Prompt) -> str:
    return '{"good_quality": true, "is_scifi": true}' if "JSON schema" in prompt.system else f"A robot dreams of {prompt.last[:20]}"


def filtering(prompt: Prompt) -> str:
    if prompt.role == "user" and "random number" in prompt.last and "random_number_tool" in prompt.tools:
        return "CALL random_number_tool(100)"
    if "Por favor" in prompt.last and "transfer_to_spanish_assistant" in prompt.tools:
        return "CALL transfer_to_spanish_assistant()"
    return f"ok: {prompt.last[:30]}"


def joking(prompt: Prompt) -> str:
    return "CALL how_many_jokes()" if prompt.role == "user" else f"{prompt.last} jokes"


STORY = ("A story in space",)
PROGRAMS = [
    Program(
        "agent_patterns/routing.py", ("Good evening in French?", "Thanks!"), routing, {"triage_agent": 1, "french_agent": 2},
        "Bonsoir, Thanks!", endless=True,
    ),
    Program(
        "agent_patterns/agents_as_tools.py", ("Say hello in Spanish and French.",), translating,
        {"orchestrator_agent": 2, "spanish_agent": 1, "french_agent": 1, "synthesizer_agent": 1}, "Final response:",
    ),
    Program(
        "agent_patterns/parallelization.py", ("Good morning!",), lambda prompt: f"Hola: {prompt.last[:20]}",
        {"spanish_agent": 3, "translation_picker": 1}, "Best translation: Hola: Input: Good morning!",
    ),
    Program(
        "agent_patterns/llm_as_a_judge.py", STORY, judging, {"story_outline_generator": 2, "evaluator": 2},
        "Final story outline: a story with stars",
    ),
    Program("agent_patterns/deterministic.py", STORY, telling, {"story_outline_agent": 1, "outline_checker_agent": 1, "story_agent": 1},
            "Story: A robot dreams of"),
    Program("handoffs/message_filter.py", (), filtering, {"Assistant": 5, "Spanish Assistant": 1}, "Step 4 done"),
    Program("basic/stream_items.py", (), joking, {"Joker": 2}, "-- Tool was called: how_many_jokes"),
]  # fmt: skip


def run(root: Path, program: str, typed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run it as `python FILE` would, in this process."""
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in typed)))
    return asyncio.to_thread(runpy.run_path, str(root / "examples" / program), run_name="__main__")


class TestPrograms:
    @pytest.fixture(params=PROGRAMS, ids=lambda program: Path(program.path).stem)
    def program(self, request: pytest.FixtureRequest) -> Program:
        return request.param

    @pytest.fixture
    def script(self, program: Program) -> Any:
        return lambda text, sampling: program.script(Prompt(text))

    async def test_an_official_example_is_recorded_to_the_last_request(
        self,
        world: World,
        api: str,
        examples: Path,
        program: Program,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        async with world.rollout() as recorder:
            try:
                await run(examples, program.path, program.typed, monkeypatch)
            except EOFError:
                assert program.endless
            else:
                assert not program.endless
            llm = await world.joined(recorder, sum(program.calls.values()))
            spans = (await world.records(recorder)).spans
        assert program.says in capsys.readouterr().out
        assert Counter(span.agent for span in llm) == program.calls
        ids = {span.id for span in spans}
        assert all(span.parent_id in ids for span in llm)
        used = [span for span in spans if span.kind == "tool"]
        assert all(span.attributes.get("tool_call_id") for span in used)
        offered = [set(span.attributes.get("tools", ())) for span in llm]
        assert {span.name for span in used} <= set().union(*offered)
        made = await world.trajectory(recorder, agents=list(program.calls))
        assert made.calls == {"completed": len(llm)}
        assert all(t.trained for t in made.transitions)
        assert sorted((t.agent, t.turn) for t in made.transitions) == sorted(
            (agent, turn) for agent, count in program.calls.items() for turn in range(count)
        )


class TestGuardrails:
    @pytest.fixture
    def script(self) -> Any:
        def say(text: str, sampling: Sampling) -> str:
            return guarding(Prompt(text))

        return say

    async def test_the_example_whose_guardrail_trips_is_recorded_with_what_was_cancelled(
        self, world: World, api: str, examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The call that the agent makes beside its guardrail may be answered before the guardrail trips, or cancelled by it."""
        typed = ("What's the capital of California?", "Can you help me solve for x: 2x + 5 = 11")
        async with world.rollout() as recorder:
            with pytest.raises(EOFError):
                await run(examples, "agent_patterns/input_guardrails.py", typed, monkeypatch)
            await asyncio.sleep(0.1)  # until the gateway has seen what was cancelled
            records = await world.records(recorder)
            llm = await world.spans(recorder, "llm")
        said = capsys.readouterr().out
        assert "Sacramento." in said
        assert "Sorry, I can't help you with your math homework." in said
        assert problems(records.spans) == []
        assert Counter(span.agent for span in llm) == {"Guardrail check": 2, "Customer support agent": 2}
        guards = [span for span in records.spans if span.kind == "tool"]
        assert sorted(span.attributes["triggered"] for span in guards) == [False, True]
        made = await world.trajectory(recorder, agents=["Guardrail*", "Customer*"])
        assert made.calls["completed"] + made.calls.get("cancelled", 0) == len(records.calls)
        assert {call.id for call in records.calls} <= {span.call_id for span in llm}
        assert Counter(t.agent for t in made.transitions)["Guardrail check"] == 2


@pytest.mark.skipif(os.name != "posix", reason="a launcher of one line is tried as a shell would start it")
@pytest.mark.parametrize("said", ["responses", "chat_completions"])
async def test_a_launcher_of_one_line_records_a_program_in_a_process_of_its_own(
    said: str, examples: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    store = open_store("memory:")
    engine = ScriptedEngine(tokenizer_folder, lambda text, sampling: joking(Prompt(text)), context_length=16384)
    gateway = Gateway(store, engine, extra_routes=store_app(store, "token").routes)
    await gateway.start()
    try:
        launcher = (
            "import runpy, sys, agents, agentlightning as agl, agentlightning_openai_agents as adapter; adapter.install(); "
            "agents.set_default_openai_api(sys.argv[1])\n"
            "with agl.rollout('jokes', store=sys.argv[2], model='scripted') as r:\n"
            "    runpy.run_path(sys.argv[3], run_name='__main__'); r.reward(1.0); print(r.id)"
        )
        address = gateway.base_url.removesuffix("/v1").replace("http://", "http://token@")
        command = [sys.executable, "-c", launcher, said, address, str(examples / "examples/basic/stream_items.py")]
        env = {"PYTHONPATH": str(examples), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        ran = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, check=False)
        assert ran.stderr == ""
        state, records = await store.read(ran.stdout.splitlines()[-1])
        made = trajectory(state, records, agents=["Joker"])
    finally:
        await gateway.stop()
    assert [(t.agent, t.turn) for t in made.transitions] == [("Joker", 0), ("Joker", 1)]
    assert (made.reward, made.calls) == (1.0, {"completed": 2})
