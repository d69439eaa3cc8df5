"""Conversations: a prompt that continues one starts with exactly the tokens that were sampled."""

from __future__ import annotations

import asyncio
from typing import Any

from agentlightning.gateway import Gateway
from agentlightning.types import Attempt, Completion, Sampling
from gateway_house import CALCULATOR, SEARCH, House, user

THE = "the"


async def ask(h: House, attempt: Attempt, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """One call; the reply as a framework would put it in its history."""
    answer = await h.client(attempt).chat.completions.create(**{"model": "scripted", "messages": messages, **more})
    return answer.choices[0].message.model_dump(exclude_none=True)


def starts(later: Completion, earlier: Completion) -> bool:
    sampled = [*earlier.prompt_ids, *earlier.response_ids]
    return later.continues == earlier.id and list(later.prompt_ids[: len(sampled)]) == sampled


async def contexts(h: House, attempt: Attempt) -> list[str | None]:
    return [call.context for call in (await h.records(attempt)).calls]


async def test_a_tool_conversation_of_many_turns_is_one_chain_of_sampled_tokens(house: Any) -> None:
    h = await house(["Let me see.\nCALL calculator(3+4)", "CALL calculator(7*2)", "It is 14."])
    attempt = await h.attempt()
    messages = [{"role": "system", "content": "Solve it."}, user("2*(3+4)?")]
    for result in ("7", "14"):
        reply = await ask(h, attempt, messages, tools=[CALCULATOR])
        messages += [reply, {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": result}]
    assert (await ask(h, attempt, messages, tools=[CALCULATOR]))["content"] == "It is 14."
    first, second, third = (await h.records(attempt)).completions
    assert starts(second, first)
    assert starts(third, second)
    assert await contexts(h, attempt) == ["first", "bridged", "bridged"]
    assert h.text(third.prompt_ids) == (
        "<|im_start|>system\nSolve it.\n\nTools:\ncalculator(expression): works out an arithmetic expression.\n"
        "To use a tool, reply with one line: CALL tool(argument)<|im_end|>\n<|im_start|>user\n2*(3+4)?<|im_end|>\n"
        "<|im_start|>assistant\nLet me see.\nCALL calculator(3+4)<|im_end|>\n<|im_start|>tool\n7<|im_end|>\n"
        "<|im_start|>assistant\nCALL calculator(7*2)<|im_end|>\n<|im_start|>tool\n14<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_tokens_that_the_tokenizer_would_merge_are_kept_as_sampled(house: Any) -> None:
    h = await house(lambda prompt, sampling: "x")
    letters = [h.engine.tokenizer.convert_tokens_to_ids(c) for c in THE]
    assert len(h.engine.tokenizer.encode(THE)) == 1
    h.engine._script = [letters, "next"]
    attempt = await h.attempt()
    reply = await ask(h, attempt, [user("a")])
    assert reply["content"] == THE
    await ask(h, attempt, [user("a"), reply, user("b")])
    first, second = (await h.records(attempt)).completions
    assert starts(second, first)
    assert list(second.prompt_ids[len(first.prompt_ids) :][:4]) == [*letters, 2]


async def test_a_reply_that_was_cut_gets_its_end_mark_as_context(house: Any) -> None:
    h = await house(["hello there", "abcSTOPdef", "end"])
    attempt = await h.attempt()
    messages = [user("a")]
    messages += [await ask(h, attempt, messages, max_tokens=5), user("b")]
    messages += [await ask(h, attempt, messages, stop="STOP"), user("c")]
    await ask(h, attempt, messages)
    first, second, third = (await h.records(attempt)).completions
    assert starts(second, first)
    assert starts(third, second)
    assert h.text(third.prompt_ids).endswith("abcSTOP<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n")


async def test_interleaved_conversations_each_continue_their_own(house: Any) -> None:
    h = await house(lambda prompt, sampling: f"reply {prompt.count('assistant')}", delay=0.005)
    attempt = await h.attempt()

    async def talk(name: str) -> None:
        messages = [{"role": "system", "content": name}, user("go")]
        for _ in range(3):
            messages += [await ask(h, attempt, messages), user("on")]

    await asyncio.gather(talk("writer"), talk("editor"))
    completions = (await h.records(attempt)).completions
    by_id = {c.id: c for c in completions}
    followers = [c for c in completions if c.continues]
    assert len(completions) == 6
    assert len(followers) == 4
    assert all(starts(c, by_id[c.continues]) for c in followers)
    assert sorted(str(c) for c in await contexts(h, attempt)) == ["bridged"] * 4 + ["first"] * 2


async def test_a_changed_history_is_rendered_afresh_and_says_why(house: Any) -> None:
    h = await house(lambda prompt, sampling: f"reply {len(prompt)}")
    attempt = await h.attempt()
    one = [{"role": "system", "content": "s"}, user("a")]
    first = await ask(h, attempt, one)
    two = [*one, first, user("b")]
    second = await ask(h, attempt, two)
    await ask(h, attempt, [*one, {**first, "content": first["content"] + " "}, user("b")])
    await ask(h, attempt, [one[0], {**one[1], "content": "A"}, first, user("b")])
    await ask(h, attempt, [one[0], user("b"), second, user("c")])
    await ask(h, attempt, two, tools=[CALCULATOR])
    await ask(h, attempt, [*one, first])
    await ask(h, attempt, [user("new"), {"role": "assistant", "content": "an example"}, user("now")])
    assert await contexts(h, attempt) == [
        "first", "bridged", "edited", "edited", "trimmed", "tools changed", "repeated", "first"
    ]  # fmt: skip
    assert [c.continues is not None for c in (await h.records(attempt)).completions] == [False, True] + [False] * 6


async def test_renamed_call_ids_and_reformatted_arguments_are_the_same_conversation(house: Any) -> None:
    h = await house(['CALL search({"query": "x", "limit": 2})', "done"])
    attempt = await h.attempt()
    reply = await ask(h, attempt, [user("a")], tools=[SEARCH])
    call = reply["tool_calls"][0]
    renamed = {"role": "assistant", "content": None, "tool_calls": [{**call, "id": "mine"}]}
    renamed["tool_calls"][0]["function"] = {"name": "search", "arguments": '{"limit":2,"query":"x"}'}
    result = {"role": "tool", "tool_call_id": "mine", "content": [{"type": "text", "text": "found"}]}
    await ask(h, attempt, [user("a"), renamed, result], tools=[SEARCH])
    assert await contexts(h, attempt) == ["first", "bridged"]


async def test_another_choice_of_n_can_be_continued(house: Any) -> None:
    h = await house(["one", "two", "three", "next"])
    attempt = await h.attempt()
    answer = await h.client(attempt).chat.completions.create(model="scripted", messages=[user("a")], n=3)
    second = answer.choices[1].message.model_dump(exclude_none=True)
    await ask(h, attempt, [user("a"), second, user("b")])
    completions = (await h.records(attempt)).completions
    assert starts(completions[3], completions[1])


async def test_a_forced_tool_call_is_continued_with_its_prefix(house: Any) -> None:
    h = await house(["3+4)", "It is 7."])
    attempt = await h.attempt()
    reply = await ask(h, attempt, [user("a")], tools=[CALCULATOR], tool_choice="required")
    result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "7"}
    await ask(h, attempt, [user("a"), reply, result], tools=[CALCULATOR])
    first, second = (await h.records(attempt)).completions
    assert starts(second, first)
    assert "assistant\nCALL calculator(3+4)<|im_end|>" in h.text(second.prompt_ids)


async def test_another_gateway_goes_on_in_the_middle_of_a_conversation(house: Any) -> None:
    h = await house(["one", "two", "three"])
    attempt = await h.attempt(Sampling(temperature=1.0))
    messages = [user("a")]
    messages += [await ask(h, attempt, messages), user("b")]
    await h.gateway.stop()
    h.gateway = Gateway(h.store, h.engine)
    await h.gateway.start()
    try:
        messages += [await ask(h, attempt, messages), user("c")]
        edited = [*messages[:3], {**messages[3], "content": "TWO"}, user("c")]
        await ask(h, attempt, edited)
    finally:
        await h.gateway.stop()
    records = await h.records(attempt)
    assert starts(records.completions[1], records.completions[0])
    assert [(c.index, c.context) for c in records.calls] == [(0, "first"), (1, "bridged"), (2, "edited")]
    assert len({c.sampling.seed for c in records.completions}) == 3


async def test_the_same_run_repeats_its_seeds_prompts_and_call_ids(house: Any) -> None:
    h = await house(lambda prompt, sampling: f"CALL calculator({sampling.seed})" if "tool\n" not in prompt else "done")
    seen: list[Any] = []
    for _ in range(2):
        from agentlightning.types import Task

        attempt = await h.attempt(seed=5, step=1, index=2, task=Task("same", None))
        reply = await ask(h, attempt, [user("a")], tools=[CALCULATOR])
        result = {"role": "tool", "tool_call_id": reply["tool_calls"][0]["id"], "content": "7"}
        await ask(h, attempt, [user("a"), reply, result], tools=[CALCULATOR])
        records = await h.records(attempt)
        seen.append(([(c.prompt_ids.tolist(), c.response_ids.tolist(), c.sampling.seed) for c in records.completions], reply))
    assert seen[0] == seen[1]


async def test_a_history_with_content_in_parts_is_read_and_bridged(house: Any) -> None:
    h = await house(["CALL calculator(3+4)", "It is 7.", "Bye."])
    attempt = await h.attempt()
    client = h.client(attempt)

    def parts(*texts: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text} for text in texts]

    history: list[Any] = [{"role": "system", "content": parts("Be ", "kind.")}, {"role": "user", "content": parts("3+", "4?")}]
    for answer in (parts("7"), parts("Thanks", ".")):
        reply = (await client.chat.completions.create(model="scripted", messages=history, tools=[CALCULATOR])).choices[0].message
        back: dict[str, Any] = {"role": "assistant", "content": parts(reply.content) if reply.content else None}
        if reply.tool_calls:
            back["tool_calls"] = [call.to_dict() for call in reply.tool_calls]
        ids = [call.id for call in reply.tool_calls or ()]
        history += [back, {"role": "tool", "tool_call_id": ids[0], "content": answer} if ids else {"role": "user", "content": answer}]
    await client.chat.completions.create(model="scripted", messages=history, tools=[CALCULATOR])
    assert [call.context for call in (await h.records(attempt)).calls] == ["first", "bridged", "bridged"]
    for text in ("Be kind.", "3+4?", "Thanks."):
        assert text in h.engine.asked[-1].prompt
