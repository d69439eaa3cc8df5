"""Times training steps against TRL's GRPOTrainer: the same model, tasks, two-turn agent, trained layers and number type.

    pip install trl
    python benchmarks/performance/trl.py                           # SmolLM2-135M, 8 tasks of 8 rollouts: some 10 minutes on two cores
    python benchmarks/performance/trl.py --model FOLDER --train top:6    # another model
    python benchmarks/performance/trl.py --model tiny --tasks 2 --rollouts 2 --steps 2    # seconds; the bound holds for the default size

The agent asks for a calculation, reads its result, and answers. Here it is a program with the OpenAI client; there it is a `rollout_func`
with TRL's own sampling, because GRPOTrainer's tools need a chat template with tools. Both sides train on the same rewards, at a learning
rate too small to change the replies. TRL samples all rollouts at once and runs without gradient checkpointing.

The sides take turns, each in a process of its own. Loading the model and the first step do not count. `seconds` is the mean of a step.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from bounds import Report, bar, finish
from simpleeval import InvalidExpression, simple_eval

FASTER = 2.0
"""Minimum ratio of TRL's time to ours."""
MAX_TOKENS = 24
LR = 1e-12
SIDES = ("Agent Lightning", "TRL")
INSTRUCTIONS = "Reply with CALL and an expression. When you get its result, reply with: The answer is RESULT."


def conversation(question: str) -> list[dict[str, str]]:
    """Return a few worked examples, then the question."""
    from agentlightning_benchmarks.demo.agent import EXAMPLES

    messages = [{"role": "system", "content": INSTRUCTIONS}]
    for example, expression, result in EXAMPLES:
        for role, text in (("user", example), ("assistant", f"CALL {expression}"), ("user", f"RESULT {result}")):
            messages.append({"role": role, "content": text})
        messages.append({"role": "assistant", "content": f"The answer is {result}."})
    return [*messages, {"role": "user", "content": question}]


def observation(reply: str) -> str:
    """Return the agent's second message."""
    try:
        return f"RESULT {simple_eval(reply.removeprefix('CALL').strip()):g}"
    except (InvalidExpression, SyntaxError, ArithmeticError, TypeError, ValueError, AttributeError, MemoryError):
        return "RESULT error"


def reward(reply: str, answer: Any) -> float:
    from agentlightning_benchmarks.demo.tasks import number_in

    return float(number_in(reply) == number_in(str(answer)))


def chosen_tasks(options: argparse.Namespace) -> list[dict[str, Any]]:
    from agentlightning_benchmarks.demo.tasks import train_tasks

    return train_tasks()[: options.tasks * options.steps]


def run_ours(options: argparse.Namespace, path: str, dtype: str) -> dict[str, Any]:
    from openai import AsyncOpenAI

    import agentlightning as agl
    from agentlightning.training.metrics import read_metrics

    async def solve(task: dict[str, Any], llm: agl.LLM) -> float:
        messages: list[Any] = conversation(task["question"])
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
            for turn in range(2):
                answer = await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=MAX_TOKENS)
                reply = answer.choices[0].message.content or ""
                if not turn:
                    messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": observation(reply)}]
        return reward(reply, task["answer"])

    with tempfile.TemporaryDirectory() as folder:
        run = agl.train(
            solve,
            tasks=chosen_tasks(options),
            model=path,
            folder=folder,
            steps=options.steps,
            tasks_per_step=options.tasks,
            algorithm=agl.LightningRL(group_size=options.rollouts),
            sampling={"temperature": 1.0, "max_tokens": MAX_TOKENS},
            engine={"name": "torch", "max_batch": options.tasks * options.rollouts},
            trainer={"name": "torch", "lr": LR, "train": options.train, "dtype": dtype},
            runner={"concurrency": options.tasks * options.rollouts},
            progress=False,
        )
        rows = [row for row in read_metrics(run.folder) if row["step"] > 1]
    return {name: [row[name] for row in rows] for name in ("seconds", "sampled_tokens", "reward")}


def run_trl(options: argparse.Namespace, path: str, dtype: str) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from agentlightning_torch.optim import trained_parameters

    tokenizer: Any = AutoTokenizer.from_pretrained(path)
    ends: list[float] = []
    sampled: list[int] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def prompt_ids(messages: list[dict[str, str]], *, generate: bool = True) -> list[int]:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=generate, return_dict=False)

    def between(reply_ids: list[int], text: str) -> list[int]:
        """Return the ids between a reply and the next."""
        before = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        closed = prompt_ids(before, generate=False)
        end = len(closed) - closed[::-1].index(tokenizer.eos_token_id)
        ids = prompt_ids([*before, {"role": "user", "content": text}])[end:]
        return ids if reply_ids[-1:] == [tokenizer.eos_token_id] else [tokenizer.eos_token_id, *ids]

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        first_prompts = [prompt_ids(prompt) for prompt in prompts]
        first, _ = trainer._generate_single_turn(first_prompts, None, {}, options.rollouts)
        replies = tokenizer.batch_decode(first, skip_special_tokens=True)
        bridges = [between(ids, observation(text)) for ids, text in zip(first, replies, strict=True)]
        longer = [[*prompt, *ids, *bridge] for prompt, ids, bridge in zip(first_prompts, first, bridges, strict=True)]
        second, _ = trainer._generate_single_turn(longer, None, {}, options.rollouts)
        sampled.append(sum(map(len, [*first, *second])))
        parts = list(zip(first, bridges, second, strict=True))
        return {
            "prompt_ids": first_prompts,
            "completion_ids": [[*a, *bridge, *b] for a, bridge, b in parts],
            "env_mask": [[1] * len(a) + [0] * len(bridge) + [1] * len(b) for a, bridge, b in parts],
            "logprobs": None,
            "last": tokenizer.batch_decode(second, skip_special_tokens=True),
        }

    def earned(last: list[str], answer: list[Any], **_: Any) -> list[float]:
        return [reward(reply, right) for reply, right in zip(last, answer, strict=True)]

    model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
    trained_parameters(model, options.train)
    tasks = [{"prompt": conversation(task["question"]), "answer": task["answer"]} for task in chosen_tasks(options)]
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=dtype == "bfloat16",
            gradient_checkpointing=False,
            per_device_train_batch_size=options.rollouts,
            gradient_accumulation_steps=options.tasks,
            num_generations=options.rollouts,
            max_completion_length=MAX_TOKENS,
            temperature=1.0,
            learning_rate=LR,
            max_steps=options.steps,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model, earned, config, Dataset.from_list(tasks), processing_class=tokenizer, rollout_func=rollout, callbacks=[Clock()]
        )
        trainer.train()
        rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    return {
        "seconds": [end - start for start, end in pairwise(ends)],
        "sampled_tokens": sampled[1:],
        "reward": rewards[1:],
    }


def run_side(side: str, arguments: list[str]) -> dict[str, Any]:
    """Run a side in a process of its own and return its numbers for each step after the first."""
    done = subprocess.run([sys.executable, __file__, *arguments, "--side", side], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed with status {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace, arguments: list[str]) -> None:
    numbers: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with bar() as progress:
        task = progress.add_task("", total=options.rounds * len(SIDES))
        for side in SIDES * options.rounds:
            progress.update(task, description=side)
            numbers[side].append(run_side(side, arguments))
            progress.advance(task)
    ours, theirs = ({name: [value for run in numbers[side] for value in run[name]] for name in numbers[side][0]} for side in SIDES)
    report = Report(
        f"{options.model}, {options.steps - 1} steps of {options.tasks} tasks with {options.rollouts} rollouts",
        ("seconds", "lowest", "highest", "sampled tokens", "reward"),
    )
    ratio = mean(theirs["seconds"]) / mean(ours["seconds"])
    for side, values in zip(SIDES, (ours, theirs), strict=True):
        spread = [f"{value:.1f}" for value in (mean(values["seconds"]), min(values["seconds"]), max(values["seconds"]))]
        cells = [*spread, f"{mean(values['sampled_tokens']):.0f}", f"{mean(values['reward']):.3f}"]
        report.add(side, *cells, **({"ratio": ratio, "least": FASTER} if side == "TRL" else {}))
    finish(report.show())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name or a folder")
    parser.add_argument("--train", default="top:10", help="full, or top:N for the last N layers")
    parser.add_argument("--tasks", type=int, default=8, help="tasks per step")
    parser.add_argument("--rollouts", type=int, default=8, help="rollouts per task")
    parser.add_argument("--steps", type=int, default=3, help="steps of a run, with the first, which does not count")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.steps < 2:
        parser.error("--steps must be at least 2, because the first step does not count")
    if options.side is None:
        compare(options, sys.argv[1:])
        return
    sys.path.remove(str(Path(__file__).resolve().parent))  # this file would hide the package `trl`
    import torch

    from agentlightning.config.models import find_model
    from agentlightning_torch.testing import tiny_model
    from agentlightning_torch.weights import chosen_type

    run = {"TRL": run_trl, "Agent Lightning": run_ours}[options.side]
    with tempfile.TemporaryDirectory() as folder:
        if options.model == "tiny":
            files, options.train = tiny_model(folder, layers=3, context=2048), "top:1"
        else:
            files = find_model(options.model)
        dtype = str(chosen_type(files, torch.device("cpu"), "auto")).removeprefix("torch.")
        print(json.dumps(run(options, str(files.path), dtype)))


if __name__ == "__main__":
    main()
