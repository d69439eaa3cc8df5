from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agentlightning.stores.common import open_store
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import Attempt, Call, Completion, Reward, Rollout, Sampling, Span, Task

AGL = Callable[..., tuple[int, str]]

Filled = tuple[RunFolder, dict[str, Rollout]]


def line(output: str, start: str) -> str:
    return next(each for each in output.splitlines() if re.search(start, each))


def test_every_request_and_every_sampled_token_is_accounted_for(agl: AGL, run: Filled) -> None:
    code, output = agl("show")
    assert code == 0
    assert line(output, "requests =") == "7 requests = 5 completed + 1 superseded by a retry + 1 refused"
    tokens = line(output, "sampled tokens =")
    assert tokens == "14 sampled tokens = 5 trained + 4 evaluation rollout + 3 no signal + 2 attempt failed"
    assert "unaccounted" not in output
    assert line(output, "train rollout") == "3 train rollouts, mean reward 1.000 over 1 scored"
    assert line(output, "eval rollout") == "1 greedy eval rollout, mean reward 0.250 over 1 scored"


def test_tokens_that_nobody_accounts_for_are_shown_as_such(agl: AGL, run: Filled) -> None:
    folder, made = run
    folder.write_batch(1, {made["trained"].id: folder.read_batch(1)[made["trained"].id].__class__(trained=5)})
    assert "+ 3 unaccounted for" in agl("show")[1]


@pytest.mark.parametrize("learned", [True, False])
def test_tokens_of_calls_that_were_not_answered_are_named_by_what_became_of_them(agl: AGL, run: Filled, learned: bool) -> None:
    folder, made = run
    attempt = asyncio.run(add_unanswered(folder, made["trained"]))
    if not learned:
        folder.write_batch(1, {})
    code, output = agl("show", "latest", made["trained"].id)
    assert (code, attempt.status) == (0, "succeeded")
    tokens = line(output, "sampled tokens =")
    assert tokens.startswith("15 sampled tokens = ")
    for part in ("4 cancelled call", "2 superseded call", "1 error"):
        assert part in tokens
    assert "unaccounted" not in output


def test_a_rollout_without_a_model_call_is_counted_and_says_so(agl: AGL, run: Filled) -> None:
    folder, _ = run

    async def add() -> str:
        store = open_store(folder.store_address)
        rollout = Rollout(task=Task("t9", "cached"), mode="train")
        attempt = await store.begin(rollout, "worker-1", lease=60)
        await store.record([Reward(attempt_id=attempt.id, value=1.0, name="return")])
        await store.finish(attempt.id, "succeeded")
        await store.close()
        return rollout.id

    rollout_id = asyncio.run(add())
    assert line(agl("show")[1], "train rollout") == "4 train rollouts, mean reward 1.000 over 2 scored, 1 without a model call"
    assert "no model call reached the gateway" in agl("show", "latest", rollout_id)[1]


def completion(call: Call, size: int) -> Completion:
    ids = list(range(10, 10 + size))
    return Completion(
        call_id=call.id,
        attempt_id=call.attempt_id,
        prompt_ids=[1],
        response_ids=ids,
        logprobs=[-0.25] * size,
        versions=[4] * size,
        sampling=Sampling(),
        finish_reason="cancelled",
    )


async def add_unanswered(folder: RunFolder, rollout: Rollout) -> Attempt:
    """Calls with tokens that nobody got: cancelled, retried, broken."""
    store = open_store(folder.store_address)
    state, _ = await store.read(rollout.id)
    attempt = state.attempts[0]
    calls = [
        Call(id=f"lost-{n}", attempt_id=attempt.id, index=10 + n, status=outcome, choices=1, supersedes=supersedes)
        for n, (outcome, supersedes) in enumerate([("cancelled", None), ("error", None), ("cancelled", None), ("refused", "lost-2")])
    ]
    sizes = (4, 1, 2)
    await store.record([*(completion(call, size) for call, size in zip(calls[:3], sizes, strict=True)), *calls])
    await store.close()
    return attempt


def test_a_rollout_has_its_line_and_its_step_as_the_metrics_count_it(agl: AGL, run: Filled) -> None:
    _, made = run
    _, output = agl("show", "latest")
    cells = line(output, made["trained"].id[-8:]).split()
    assert cells == [made["trained"].id[-8:], "1", "train", "t1", "2+3?", "0", "succeeded", "1.000", "5", "8", "5", cells[-1]]
    assert line(output, made["queued"].id[-8:]).split()[6:8] == ["queued", "–"]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["--mode", "eval"], {"eval"}),
        (["--status", "failed"], {"failed"}),
        (["--step", "1"], {"trained", "failed", "eval"}),
        (["--step", "2"], {"queued"}),
        (["--limit", "1"], {"queued"}),
        (["--limit", "0"], {"trained", "failed", "eval", "queued"}),
    ],
)
def test_filters_choose_rollouts(agl: AGL, run: Filled, filters: list[str], names: set[str]) -> None:
    folder, made = run
    code, output = agl("show", str(folder.path), *filters)
    assert code == 0
    assert {name for name, rollout in made.items() if rollout.id[-8:] in output} == names


def test_ids_are_whole_on_a_narrow_screen(agl: AGL, run: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, output = agl("show")
    assert all(rollout.id[-8:] in output for rollout in run[1].values())
    assert "succeeded" in output


def test_nothing_that_fits_is_said(agl: AGL, run: Filled) -> None:
    assert "no rollout in" in agl("show", "latest", "--step", "77")[1]


def test_one_rollout_is_a_tree_of_spans_with_rewards_and_advantages(agl: AGL, run: Filled) -> None:
    _, made = run
    code, output = agl("show", "latest", made["trained"].id[-8:])
    assert code == 0
    for text in (
        "attempt 1 succeeded on worker-1",
        "agent solver",
        "tool add",
        '{"result": 5}',
        "reward neat = 0.5",
        "reward return = 1",
        "return +1.000, advantage +0.750",
        "3 + 5 tokens, stop, policy main v4, mean logprob -0.250",
        "it is [five]",
        '→ add({"a": 2})',
        "model calls without a span of the framework",
        "unknown tool_choice",
        "retried as call d-call-r",
    ):
        assert text in output, text
    assert re.search(r"attempt 1 succeeded on worker-1.*, id [0-9a-f]{32}", output)
    depth = {text: line(output, text).index(text) for text in ("agent solver", "tool add")}
    assert depth["tool add"] > depth["agent solver"]
    order = ["attempt 1", "reward return", "agent solver", "tool add", "reward neat", "model calls without a span"]
    assert sorted(order, key=output.index) == order


def test_a_call_shows_its_new_messages_its_tools_and_its_reply(agl: AGL, run: Filled) -> None:
    _, made = run
    lines = [text.strip(" │├└─") for text in agl("show", "latest", made["trained"].id)[1].splitlines()]
    first, second = (lines[next(n for n, text in enumerate(lines) if f"call d-call-{n_}" in text) :] for n_ in (0, 1))
    assert first[1:4] == ["tools add", "system Be exact.", "user What is [2]+3?"]
    assert first[6:8] == ["it is [five]", '→ add({"a": 2})']
    assert second[1:4] == ["tools add", "… 3 messages of call d-call-0", "tool 5"]
    assert lines.count("its messages are not recorded") == 3


def test_thoughts_images_and_hidden_tools_are_shown_in_a_few_words(agl: AGL, run: Filled) -> None:
    folder, made = run
    image = {"type": "image_url", "image_url": {"url": "data:" + "A" * 9000}}
    thoughtful = {"role": "assistant", "content": "Cat.", "reasoning_content": "It purrs."}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}, {"role": "user", "content": "z" * 2500}]
    asyncio.run(add_call(folder, made["eval"], thoughtful, messages=messages, tool_schemas=[{"name": "look"}]))
    output = agl("show", "latest", made["eval"].id)[1]
    for text in ("user What is it?", "[image_url, 9,052 characters]", "tools look (tool_choice hides", "… (500 more characters)"):
        assert text in output, text
    assert sorted(("thinking: It purrs.", "Cat."), key=output.index) == ["thinking: It purrs.", "Cat."]
    assert "AAAA" not in output


async def add_call(folder: RunFolder, rollout: Rollout, message: Any, **fields: Any) -> None:
    store = open_store(folder.store_address)
    state, _ = await store.read(rollout.id)
    call = Call(id="extra", attempt_id=state.attempts[0].id, index=9, status="completed", choices=1, **fields)
    await store.record([call, replace(completion(call, 2), message=message)])
    await store.close()


def test_a_terminal_never_obeys_what_a_model_or_an_agent_wrote(agl: AGL, run: Filled) -> None:
    folder, _ = run
    evil = "\x1b[2J\x1b]0;own\x07\x9b31m\u202egnp.exe\r\x08"

    async def add() -> str:
        store = open_store(folder.store_address)
        rollout = Rollout(task=Task(f"id{evil}", {"question": f"q{evil}"}), mode="eval", sampling=Sampling())
        attempt = await store.begin(rollout, f"worker{evil}", lease=60)
        call = Call(
            id=f"c{evil}", attempt_id=attempt.id, index=0, status="refused", detail=evil, context=evil, tools=1,
            messages=[{"role": evil, "content": evil, "tool_calls": [{"function": {"name": evil, "arguments": evil}}]}],
            tool_schemas=[{"function": {"name": evil}}],
        )  # fmt: skip
        span = Span(attempt_id=attempt.id, kind="tool", name=evil, attributes={evil: evil})
        message = {"role": "assistant", "content": evil, "reasoning_content": evil}
        reply = replace(completion(call, 1), message=message, problem=evil, policy=evil)
        await store.record([call, reply, span, Reward(attempt_id=attempt.id, value=1.0, name=evil, source=evil)])
        await store.finish(attempt.id, "failed", error=evil)
        await store.close()
        return rollout.id

    rollout_id = asyncio.run(add())
    for output in (agl("show")[1], agl("show", "latest", rollout_id)[1], agl("show", "latest", rollout_id, "--tokens")[1]):
        assert [character for character in output if not (character.isprintable() or character == "\n")] == []
        assert "␛[2J␛]0;own" in output


def test_the_list_shows_the_start_of_each_task_and_how_an_evaluation_samples(agl: AGL, run: Filled) -> None:
    folder, made = run
    prompts = ["Say it. " * 30, {"messages": [{"role": "user", "content": "And now?"}]}, {"a": 1, "b": None}]

    async def add() -> None:
        store = open_store(folder.store_address)
        await store.add([Rollout(task=Task("0123456789abcdef", text), mode="eval", sampling=Sampling(), step=3) for text in prompts])
        await store.close()

    asyncio.run(add())
    output = agl("show")[1]
    assert " greedy eval t2 hard " in " ".join(line(output, made["eval"].id[-8:]).split())
    for start in ("Say it. Say it. Say it. ", "And now? ", '{"a": 1, "b": null} '):
        assert f" sampled eval {start}" in " ".join(output.split())
    assert line(output, "sampled eval rollout") == "3 sampled eval rollouts, none scored"
    assert max(map(len, output.splitlines())) <= 160


def test_a_step_reward_of_the_runs_configuration_stands_beside_the_others(agl: AGL, run: Filled) -> None:
    folder, made = run
    name = made["trained"].id
    (folder.path / "own_facts.py").write_text("def looked(records):\n    return [each for each in records.spans if each.name == 'add']\n")
    table = 'step_rewards = { "own_facts:looked" = -0.125, truncated = -1.0 }'
    folder.write_config(f'model = "no-such-model"\nagents = ["*"]\npath = "{folder.path}"\n{table}\n')
    output = agl("show", "latest", name)[1]
    order = ["agent solver", "tool add", "reward neat = 0.5", "reward own_facts:looked = -0.125 from step_signal"]
    assert sorted(order, key=output.index) == order
    assert output.count("own_facts:looked") == 1
    assert "truncated" not in output
    folder.write_config('model = "no-such-model"\nstep_rewards = { gone_facts = 1.0 }\n')
    code, output = agl("show", "latest", name)
    assert (code, "reward neat = 0.5" in output) == (0, True)
    assert "note: the run's step_rewards are not shown: step_rewards.gone_facts: Unknown step signal" in output


def test_tokens_lists_each_with_id_logprob_and_version(agl: AGL, run: Filled) -> None:
    _, made = run
    _, output = agl("show", "latest", made["eval"].id, "--tokens")
    assert len(re.findall(r"\b(?:10|11|12|13)\s+-0\.2500\s+4\b", output)) == 4
    assert "showing token ids without text" in output


def test_with_the_tokenizer_in_the_run_tokens_are_text(agl: AGL, run: Filled) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder, made = run
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"word{n}": n for n in range(20)}, unk_token="word0"))
    folder.checkpoint(1).mkdir()
    words.save(str(folder.checkpoint(1) / "tokenizer.json"))
    (folder.checkpoint(1) / "run_state.json").write_text("{}")
    _, output = agl("show", "latest", made["eval"].id, "--tokens")
    assert "'word12'" in output


def test_a_failed_attempt_says_why(agl: AGL, run: Filled) -> None:
    _, made = run
    assert "ValueError: the calculator broke" in agl("show", "latest", made["failed"].id)[1]


def test_a_plain_store_file_is_shown_as_well(agl: AGL, run: Filled, tmp_path: Path) -> None:
    folder, made = run
    folder.store.rename(tmp_path / "agl.db")
    code, output = agl("show", "agl.db")
    assert code == 0
    assert made["eval"].id[-8:] in output
    assert "= 0 trained + 8 no finished training step took it + 4 evaluation rollout + 2 attempt failed" in output


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["show", "nothing"], 2, "There is no run 'nothing'. The latest runs are: "),
        (["show", "nothing.db"], 2, "There is no store file 'nothing.db'"),
        (["show", "mysql://host/db"], 2, "Unknown store 'mysql'. Use one of "),
        (["show", "latest", "zzzz"], 2, "There is no rollout 'zzzz' in this store"),
        (["show", "latest", "0"], 2, "fits"),
        (["show", "latest", "--tokens"], 2, "Name it: `agl show RUN ROLLOUT --tokens`"),
    ],
)
def test_wrong_names_say_what_would_be_right(agl: AGL, run: Filled, arguments: list[str], code: int, says: str) -> None:
    assert (agl(*arguments)[0], says in agl(*arguments)[1]) == (code, True)


def test_the_listed_id_alone_shows_the_rollout_of_the_last_run(agl: AGL, run: Filled) -> None:
    listed = next(line.split()[0] for line in agl("show")[1].splitlines()[1:])
    assert agl("show", listed) == agl("show", "latest", listed)
    assert agl("show", listed)[0] == 0
    assert agl("show", "0123abcd")[0] == 2
