"""The math benchmark: its calculator, reward and tasks, and its agent behind a real gateway."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from agentlightning.capture.recorder import Recorder, use
from agentlightning.config.schema import load_config
from agentlightning.config.tasks import load_tasks
from agentlightning.errors import ConfigError
from agentlightning.gateway import Gateway
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Reward, Rollout, Sampling, Task
from agentlightning_autogen import uninstall
from agentlightning_benchmarks.math import tasks as tasks_module
from agentlightning_benchmarks.math.agent import CALLS, FULL, calculator
from agentlightning_benchmarks.math.reward import number_in, reward
from agentlightning_benchmarks.math.solve import solve, solve_real
from agentlightning_benchmarks.math.tasks import load, make_tasks, test_tasks, train_tasks
from agentlightning_benchmarks.math.templates import NAMES, TEMPLATES, THINGS

test_tasks.__test__ = False  # type: ignore[attr-defined]
FOLDER = Path(tasks_module.__file__).parent
GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"


@pytest.mark.parametrize(
    ("text", "answer", "earned"),
    [
        ("The answer is 41.", "41", 1.0),
        ("The answer is 41 apples for 3 people.", 41, 1.0),
        ("First I thought the answer is 40. The answer is 41.", 41, 1.0),
        ("so 20+21=41", "41", 1.0),
        ("The answer is 1,000.", "1000", 1.0),
        ("The answer is 12,13", "1213", 0.0),
        ("The answer is 12,13", "12", 1.0),
        ("12,13", "13", 1.0),
        ("The answer is 1,234,567.5 m", "1234567.5", 1.0),
        ("The answer is 1,2345", "12345", 0.0),
        ("The answer is $5.", "5", 1.0),
        ("The answer is $1,234.50", "1234.5", 1.0),
        ("The answer is 3/4.", "0.75", 1.0),
        ("The answer is 0.75", "3/4", 1.0),
        ("The answer is 50%.", "50", 1.0),
        ("The answer is 33.3333", "33.33", 1.0),
        ("The answer is 33.4", "33.33", 0.0),
        ("The answer is -7", "-7", 1.0),
        ("The answer is 7", "-7", 0.0),
        ("117-69", "69", 1.0),
        ("The answer is .5", "0.5", 1.0),
        ("The answer is 41.4", "41", 0.0),
        ("The answer is 410", "41", 0.0),
        ("The answer is 4 1", "41", 0.0),
        ("The answer is forty-one", "41", 0.0),
        ("The answer is", "41", 0.0),
        ("", "41", 0.0),
        (None, "41", 0.0),
        ("The answer is 9" + "9" * 400, "41", 0.0),
        ("The answer is 5/0", "5", 1.0),
    ],
)
def test_the_reward_is_numeric_equality(text: str | None, answer: Any, earned: float) -> None:
    assert reward(text, answer) == earned


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("3+4", "7"), ("7/2", "3.5"), ("(8-2)/3", "2"), ("123456*1000", "123456000"), ("2**10", "1024"), ("-(3)", "-3"),
        ("1/0", "error"), ("2**9999999", "error"), ("((9**64)**64)**64", "error"), ("10.0**300*10.0**300", "error"),
        ("__import__('os')", "error"), ("x", "error"), ("3+", "error"), ("3>2", "error"), ("'a'*9", "error"), ("[1][0]", "error"),
        ("len('a')", "error"), ("", "error"), ("1+" * 200 + "1", "error"), ("(" * 150, "error"),
        ("x = 3+4", "error"), ("x += 1", "error"), ("1; 2", "error"), (" 3+4 ", "7"),
    ],
)  # fmt: skip
def test_the_calculator_computes_and_nothing_else(expression: str, result: str) -> None:
    assert calculator(expression).split(":")[0] == result


@pytest.mark.parametrize("expression", ["'a'*(10**8)", "10**8*'a'", "b'a'*(10**8)", "'%100000000d'%1", "('a'*(10**8))*0+5"])
def test_a_text_in_an_expression_takes_no_memory(expression: str) -> None:
    tracemalloc.start()
    try:
        assert calculator(expression) == "error: only numbers can be calculated with"
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


class TestTasks:
    def test_train_and_test_share_no_template_name_or_object(self) -> None:
        for table in (NAMES, THINGS):
            assert not set(table["train"]) & set(table["test"])
        assert not {text for _, text in TEMPLATES["train"]} & {text for _, text in TEMPLATES["test"]}
        assert not {task["question"] for task in train_tasks()} & {task["question"] for task in test_tasks()}

    def test_they_are_different_repeatable_and_their_expression_gives_the_answer(self) -> None:
        train, test = train_tasks(), test_tasks()
        assert (len(train), len(test)) == (2000, 64)
        assert test == make_tasks("test", 64)
        assert len({task["id"] for task in [*train, *test]}) == len({task["question"] for task in [*train, *test]}) == 2064
        for task in [*train, *test]:
            assert calculator(task["expression"]) == task["answer"]
            assert task["answer"].isdigit()
            assert int(task["answer"]) > 0
        json.dumps(train)

    def test_half_take_several_calculations(self) -> None:
        forms = [form for split in TEMPLATES for form, _ in TEMPLATES[split]]
        assert len([form for form in forms if sum(form.count(sign) for sign in "+-*/") > 1]) > len(forms) / 2
        assert {form for form, _ in TEMPLATES["test"]} >= {form for form, _ in TEMPLATES["train"]} - {"{q}*{p}"}
        for tasks in (train_tasks(), test_tasks()):
            assert [sum(task["expression"].count(sign) for sign in "+-*/") > 1 for task in tasks[:6]] == [False, True] * 3


class TestFiles:
    def test_real_files_are_read_as_they_are(self) -> None:
        if not GSM8K.is_dir():
            pytest.skip("no real data beside this checkout; the benchmark's own tasks are tested above")
        train, test = load(GSM8K)
        assert (len(train), len(test)) == (7473, 660)
        assert all(number_in(task["answer"]) is not None for task in [*train, *test])

    def test_what_is_missing_empty_or_wrong_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="this folder does not exist"):
            load(tmp_path / "nowhere")
        with pytest.raises(ConfigError, match=r"train.jsonl: this file does not exist"):
            load(tmp_path)
        good = json.dumps({"question": "1+1?", "answer": 2}) + "\n"
        (tmp_path / "train.jsonl").write_text(good)
        with pytest.raises(ConfigError, match=r"dev.jsonl: this file does not exist"):
            load(tmp_path)
        for text, said in [
            ("", "dev.jsonl is empty"), ("\n\n", "dev.jsonl is empty"), ("{", "dev.jsonl, line 1: JSONDecodeError"),
            (good + "[]\n", "dev.jsonl, line 2"), (good + '{"question": "x"}', "dev.jsonl, line 2: KeyError: 'answer'"),
            ('{"question": "x", "answer": "none"}', "the answer 'none' has no number"), ('{"question": 3, "answer": "3"}', "not text"),
        ]:  # fmt: skip
            (tmp_path / "dev.jsonl").write_text(text)
            with pytest.raises(ConfigError, match=said):
                load(tmp_path)
        (tmp_path / "dev.jsonl").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match=r"dev.jsonl cannot be read"):
            load(tmp_path)
        (tmp_path / "dev.jsonl").write_text(good)
        assert load(tmp_path)[1] == [{"id": "dev-1", "question": "1+1?", "answer": "2"}]


async def run(folder: Path, task: dict[str, Any], script: Any, agent: Any = solve) -> tuple[float, Any, Any]:
    """The reward, the trajectory and the records of one rollout of the benchmark's own agent."""
    make_tokenizer(folder)
    store = open_store("memory:")
    gateway = Gateway(store, ScriptedEngine(folder, script))
    await gateway.start()
    try:
        rollout = Rollout(task=Task("1", task), mode="train", sampling=Sampling(max_tokens=200))
        attempt = await store.begin(rollout, "test", lease=60)
        recorder = Recorder(store, rollout, attempt, gateway.llm(attempt))
        with use(recorder):
            earned = await agent(rollout.task.input, recorder.llm)
        recorder.add(Reward(attempt_id=attempt.id, value=earned, name="return"))
        await recorder.close()
    finally:
        uninstall()
        await gateway.stop()
    await store.finish(attempt.id, "succeeded")
    state, records = await store.read(rollout.id)
    return earned, trajectory(state, records), records[-1]


SENT = {"question": "Alice sends 4 letters of 23 grams and 5 letters of 31 grams. How many grams is that in all?", "answer": "247"}


async def test_the_agent_calls_the_calculator_and_answers(tmp_path: Path) -> None:
    earned, made, records = await run(tmp_path, SENT, ["CALL calculator(4*23)", "CALL calculator(92+5*31)", "The answer is 247."])
    assert earned == 1.0
    assert [(t.agent, t.turn, t.continues) for t in made.transitions] == [("solver", 0, None), ("solver", 1, 0), ("solver", 2, 1)]
    assert made.calls == {"completed": 3}
    assert not made.diagnostics
    tools = [span for span in records.spans if span.kind == "tool"]
    assert sorted(span.attributes["output"] for span in tools) == ["247", "92"]


async def test_a_real_model_reads_examples_of_several_steps(tmp_path: Path) -> None:
    prompts: list[str] = []

    def script(prompt: str, sampling: Sampling) -> str:
        prompts.append(prompt)
        return ["CALL calculator(4*23+5*31)", "The answer is 247."][len(prompts) - 1]

    assert (await run(tmp_path, SENT, script, solve_real))[0] == 1.0
    for example in FULL.examples:
        assert f"{example.thought}\nCALL calculator({example.expression})" in prompts[0]
        assert calculator(example.expression) == example.result


async def test_an_answer_that_is_wrong_or_never_comes_earns_nothing(tmp_path: Path) -> None:
    assert (await run(tmp_path, SENT, ["The answer is 246."]))[0] == 0.0
    earned, made, _ = await run(tmp_path, SENT, lambda prompt, sampling: "CALL calculator(247)")
    assert (earned, made.calls) == (0.0, {"completed": CALLS})


@pytest.mark.parametrize("preset", ["cpu", "gpu", "real"])
def test_the_configs_are_ones_that_agl_train_takes(preset: str) -> None:
    config = load_config(FOLDER / f"{preset}.toml")
    assert len(load_tasks(config.eval_tasks or "")) == 64
    assert len(load_tasks(config.tasks or "")) == 2000
