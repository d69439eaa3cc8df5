"""`/v1/completions` with the official client: text and ids as they are, over the same recording path."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from agentlightning.types import Sampling
from gateway_house import eventually


async def test_a_text_is_continued_as_it_is_and_recorded_exactly(house: Any) -> None:
    h = await house([" and they lived"])
    attempt = await h.attempt(Sampling(temperature=0.7))
    answer = await h.client(attempt).completions.create(model="scripted", prompt="Once <b>", max_tokens=99, logprobs=1)
    records = await h.records(attempt)
    [call], [completion] = records.calls, records.completions
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" and they lived", "stop")
    assert (answer.object, answer.system_fingerprint) == ("text_completion", call.id)
    assert h.text(completion.prompt_ids) == "Once <b>"
    assert h.text(completion.response_ids) == " and they lived<|im_end|>"
    scores = answer.choices[0].logprobs
    assert "".join(scores.tokens) == " and they lived"
    assert scores.token_logprobs == pytest.approx(completion.logprobs[:-1])
    assert [" and they lived"[o] for o in scores.text_offset] == [t[0] for t in scores.tokens]
    assert answer.usage.prompt_tokens == len(completion.prompt_ids)
    assert (call.status, call.context) == ("completed", "first")


async def test_ids_are_continued_as_they_are(house: Any) -> None:
    h = await house(["x"])
    attempt = await h.attempt()
    letters = [h.engine.tokenizer.convert_tokens_to_ids(c) for c in "the"]
    assert len(h.engine.tokenizer.encode("the")) == 1  # written as text, the prompt would be another
    answer = await h.client(attempt).completions.create(model="scripted", prompt=letters, extra_body={"return_token_ids": True})
    [completion] = (await h.records(attempt)).completions
    assert completion.prompt_ids.tolist() == letters == answer.choices[0].model_extra["prompt_token_ids"]
    assert answer.choices[0].model_extra["token_ids"] == completion.response_ids.tolist()


async def test_several_prompts_with_several_choices_are_in_order(house: Any) -> None:
    h = await house(lambda prompt, sampling: f"{prompt}!{sampling.seed}")
    attempt = await h.attempt()
    answer = await h.client(attempt).completions.create(model="scripted", prompt=["a", "bb"], n=2, max_tokens=40)
    records = await h.records(attempt)
    assert [(c.index, c.text.split("!")[0]) for c in answer.choices] == [(0, "a"), (1, "a"), (2, "bb"), (3, "bb")]
    assert [h.text(c.prompt_ids) for c in records.completions] == ["a", "a", "bb", "bb"]
    assert len({c.sampling.seed for c in records.completions}) == 4
    assert len({c.conversation for c in records.completions}) == 4
    assert answer.usage.prompt_tokens == 3
    assert records.calls[0].choices == 4


@pytest.mark.parametrize("chunk", [1, 3, 100])
async def test_streaming_gives_the_same_text_tokens_and_usage(house: Any, chunk: int) -> None:
    h = await house(["wörld 😀!STOP and more"], chunk=chunk)
    attempt = await h.attempt()

    def work() -> list[Any]:
        with openai.OpenAI(base_url=h.gateway.base_url, api_key=attempt.key) as client:
            return list(
                client.completions.create(
                    model="scripted", prompt="hi", max_tokens=60, stop="STOP", stream=True, logprobs=0,
                    stream_options={"include_usage": True}, extra_body={"return_token_ids": True},
                )
            )  # fmt: skip

    chunks = await asyncio.to_thread(work)
    [completion] = (await h.records(attempt)).completions
    told = [c.choices[0] for c in chunks if c.choices]
    assert "".join(c.text for c in told) == "wörld 😀!"
    assert not any("\ufffd" in c.text for c in told)
    assert [i for c in told for i in c.model_extra.get("token_ids", [])] == completion.response_ids.tolist()
    assert told[0].model_extra["prompt_token_ids"] == completion.prompt_ids.tolist()
    assert [s for c in told if c.logprobs for s in c.logprobs.token_logprobs] == pytest.approx(completion.logprobs)
    assert told[-1].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len(completion.response_ids)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "a" * 5000}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_and_counted(house: Any, change: dict[str, Any], param: str) -> None:
    h = await house(["x"])
    attempt = await h.attempt()
    with pytest.raises(openai.BadRequestError) as error:
        await h.client(attempt).completions.create(**{"model": "scripted", "prompt": "hi", **change})
    assert error.value.param == param
    assert [(c.status, c.choices) for c in (await h.records(attempt)).calls] == [("refused", 0)]


async def test_requests_are_counted_whatever_becomes_of_them(house: Any) -> None:
    h = await house(lambda prompt, sampling: "a long reply that takes its time", chunk=1, delay=0.01)
    attempt = await h.attempt()
    client = h.client(attempt)
    await client.completions.create(model="scripted", prompt=["a", "b"], max_tokens=2)
    with pytest.raises(openai.NotFoundError):
        await client.completions.create(model="nope", prompt="a")
    stream = await client.completions.create(model="scripted", prompt="a", stream=True, max_tokens=60)
    async for _ in stream:
        break
    await stream.close()

    async def recorded() -> bool:
        return len((await h.records(attempt)).calls) == 3

    await eventually(recorded)
    records = await h.records(attempt)
    assert sorted(c.status for c in records.calls) == ["cancelled", "completed", "refused"]
    assert sum(c.choices for c in records.calls) == len(records.completions) == 3
