"""Programs whose framework forces a tool call, with two renderers: the model's own marks, and calls in text."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.gateway import Gateway
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import LLM, Call, Rollout, Sampling, Task

HERE = Path(__file__).parent
ENVIRONMENTS = os.environ.get("AGL_TEST_FRAMEWORKS")
MARKS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}{% for call in message.tool_calls or () %}"
    '\n<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = {"city": "Paris", "country": "France"}


class Place(BaseModel):
    city: str
    country: str


@asynccontextmanager
async def forced(folder: Path, renderer: str, tool: str, arguments: dict[str, Any]) -> AsyncIterator[Callable[[], Any]]:
    """A function that opens a rollout: (its model, a function for its calls). The model calls `tool`, however the call begins."""
    make_tokenizer(folder)
    begins: list[str] = []

    def script(prompt: str, sampling: Sampling) -> str:
        begin = prompt.rpartition("<|im_start|>assistant\n")[2]
        begins.append(begin)
        call = json.dumps({"name": tool, "arguments": arguments})
        full = f"<tool_call>\n{call}\n</tool_call>" if renderer == "marks" else f"CALL {tool}({json.dumps(arguments)})"
        assert full.startswith(begin), (begin, full)
        return full[len(begin) :]

    store = open_store("memory:")
    settings = RenderingSettings(chat_template=MARKS) if renderer == "marks" else RenderingSettings()
    gateway = Gateway(store, ScriptedEngine(folder, script, context_length=32768), rendering=settings)
    await gateway.start()

    async def opened() -> tuple[LLM, Callable[[], Any]]:
        attempt = await store.begin(Rollout(task=Task("1", None), mode="train", sampling=Sampling()), "test", lease=600)

        async def calls() -> list[Call]:
            return (await store.records(attempt.id)).calls

        return gateway.llm(attempt), calls

    yield opened
    await gateway.stop()
    assert begins
    assert all(begins), "every call was begun for the model"


@pytest.mark.parametrize("renderer", ["marks", "text"])
async def test_pydantic_ai_gets_its_output_type(tmp_path: Path, renderer: str) -> None:
    pydantic_ai: Any = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    async with forced(tmp_path, renderer, "final_result", ANSWER) as opened:
        llm, calls = await opened()
        model = OpenAIChatModel(llm.model, provider=OpenAIProvider(base_url=llm.base_url, api_key=llm.api_key))
        result = await pydantic_ai.Agent(model, output_type=Place).run("Where is the Louvre?")
        assert result.output == Place(**ANSWER)
        assert [call.status for call in await calls()] == ["completed"]


async def run_program(command: list[str], folder: Path, llm: LLM) -> str:
    environment = {**os.environ, "OPENAI_BASE_URL": llm.base_url, "OPENAI_API_KEY": llm.api_key, "AGL_MODEL": llm.model}
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("renderer", ["marks", "text"])
async def test_instructor_gets_its_model(tmp_path: Path, renderer: str) -> None:
    python = Path(ENVIRONMENTS or "").resolve() / "instructor" / "bin" / "python"
    if not ENVIRONMENTS or not python.exists():
        pytest.skip("no environment here has it; run: make test-frameworks")
    program = (
        "import os, instructor, openai, pydantic\n"
        "class Place(pydantic.BaseModel):\n    city: str\n    country: str\n"
        "ask = instructor.from_openai(openai.OpenAI()).chat.completions.create\n"
        "messages = [{'role': 'user', 'content': 'Where is the Louvre?'}]\n"
        "print(ask(model=os.environ['AGL_MODEL'], response_model=Place, messages=messages).model_dump_json())"
    )
    async with forced(tmp_path, renderer, "Place", ANSWER) as opened:
        llm, calls = await opened()
        assert json.loads(await run_program([str(python), "-c", program], tmp_path, llm)) == ANSWER
        assert [call.status for call in await calls()] == ["completed"]


@pytest.mark.parametrize("renderer", ["marks", "text"])
async def test_smolagents_gets_its_final_answer(tmp_path: Path, renderer: str) -> None:
    python = Path(ENVIRONMENTS or "").resolve() / "smolagents" / "bin" / "python"
    if not ENVIRONMENTS or not python.exists():
        pytest.skip("no environment here has it; run: make test-frameworks")
    program = (
        "import os; from smolagents import OpenAIServerModel, ToolCallingAgent\n"
        "model = OpenAIServerModel(os.environ['AGL_MODEL'], os.environ['OPENAI_BASE_URL'], api_key=os.environ['OPENAI_API_KEY'])\n"
        "print('said', ToolCallingAgent(tools=[], model=model, max_steps=2).run('Where is the Louvre?'))"
    )
    async with forced(tmp_path, renderer, "final_answer", {"answer": "Paris"}) as opened:
        llm, calls = await opened()
        assert "said Paris" in await run_program([str(python), "-c", program], tmp_path, llm)
        assert [call.status for call in await calls()] == ["completed"]


@pytest.mark.parametrize("renderer", ["marks", "text"])
async def test_the_ai_sdk_gets_the_tool_it_chooses(tmp_path: Path, renderer: str) -> None:
    folder = Path(ENVIRONMENTS or "").resolve() / "ai-sdk"
    if not ENVIRONMENTS or not (folder / "node_modules").is_dir():
        pytest.skip("no environment here has it; run: make test-frameworks, with npm")
    async with forced(tmp_path, renderer, "place", ANSWER) as opened:
        llm, calls = await opened()
        assert json.loads(await run_program(["node", "forced.mjs"], folder, llm)) == ANSWER
        assert [call.status for call in await calls()] == ["completed"]
