"""Parameters that other servers accept: honoured, overridden with a warning, or refused by name. None is dropped silently."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from anthropic.types import OutputConfigParam, ThinkingConfigEnabledParam, ToolChoiceToolParam, ToolParam
from anthropic.types import message_count_tokens_params as count
from anthropic.types import message_create_params as messages
from anthropic.types.beta import BetaOutputConfigParam, BetaThinkingConfigAdaptiveParam, BetaToolParam
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_messages
from openai.types import completion_create_params as legacy
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat
from openai.types.responses import FunctionToolParam, ResponseTextConfigParam
from openai.types.responses import response_create_params as responses
from openai.types.shared_params import Reasoning
from tests.gateway_house import House, user

from agentlightning.contracts.rendering import RenderingSettings
from agentlightning.gateway.api.anthropic_messages import MessagesForm
from agentlightning.gateway.api.openai_chat import ChatForm
from agentlightning.gateway.api.openai_completions import CompletionsForm
from agentlightning.gateway.api.openai_responses import ResponsesForm
from agentlightning.gateway.api.parameters import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, RESPONSES, Parameters
from agentlightning.gateway.api.parameters import SAMPLING as UNHONOURED
from agentlightning.types import Rollout, Sampling, Task, new_id

SHOUTING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ mark }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
HI = [user("hi")]
SAMPLING = {
    "min_p": 0.1, "repetition_penalty": 1.2, "length_penalty": 0.5, "use_beam_search": True, "presence_penalty": 1,
    "guided_json": {"type": "object"}, "guided_regex": "a+", "guided_choice": ["a"], "guided_decoding_backend": "xgrammar",
    "structured_outputs": {"regex": "a"}, "top_logprobs": 2, "min_tokens": 5, "bad_words": ["x"],
}  # fmt: skip
NEUTRAL = {"min_p": 0, "repetition_penalty": 1.0, "presence_penalty": 0, "logit_bias": {}, "top_logprobs": 0, "guided_json": None}


async def ask(h: House, key: str, path: str = "/chat/completions", **fields: Any) -> httpx.Response:
    bodies: dict[str, Any] = {
        "/responses": {"input": "hi"},
        "/completions": {"prompt": "hi"},
        "/messages": {"messages": HI, "max_tokens": 9},
        "/messages/count_tokens": {"messages": HI},
    }
    body = {"model": "scripted", **bodies.get(path, {"messages": HI}), **fields}
    async with httpx.AsyncClient(base_url=h.gateway.base_url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        return await client.post(path, json=body)


async def production(h: House) -> Any:
    return await h.store.begin(Rollout(task=Task(new_id(), None), mode="production"), "test", lease=60)


def ignored(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = [r.getMessage() for r in caplog.records if "Ignoring the agent's" in r.getMessage()]
    return [name for text in texts for name in text.removeprefix("Ignoring the agent's ").partition(". ")[0].split(", ")]


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/completions", "/messages"])
async def test_training_overrides_settings_of_sampling_and_names_each_once(house: Any, caplog: Any, path: str) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt(Sampling(temperature=0.9))
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        for fields in (NEUTRAL, SAMPLING, {**SAMPLING, "ignore_eos": True, "top_k": 7}):
            answer = await ask(h, attempt.key, path, **fields)
            assert answer.status_code == 200, answer.text
    assert sorted(ignored(caplog)) == sorted([*SAMPLING, "ignore_eos", "top_k"])
    for completion in (await h.records(attempt)).completions:
        assert (completion.sampling.temperature, completion.sampling.top_k) == (0.9, 0)
        assert completion.sampling.stop_ids  # the model's own end still ends a reply


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/completions", "/messages"])
@pytest.mark.parametrize("name", SAMPLING)
async def test_production_refuses_settings_of_sampling_by_name(house: Any, path: str, name: str) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await production(h)
    answer = await ask(h, attempt.key, path, **{name: SAMPLING[name]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{name} is not supported")
    assert [call.status for call in (await h.records(attempt)).calls] == ["refused"]


async def test_production_takes_settings_that_change_nothing(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await production(h)
    assert (await ask(h, attempt.key, **NEUTRAL)).status_code == 200


@pytest.mark.parametrize("top_k", [-1, 0])
async def test_minus_one_and_zero_turn_top_k_off(house: Any, caplog: Any, top_k: int) -> None:
    h = await house(lambda prompt, sampling: "hello")
    for attempt in (await h.attempt(), await production(h)):
        with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
            answer = await ask(h, attempt.key, top_k=top_k)
        assert answer.status_code == 200, answer.text
        [completion] = (await h.records(attempt)).completions
        assert completion.sampling.top_k == 0
    assert ignored(caplog) == []


async def test_completions_log_probabilities_of_several_tokens_are_overridden_or_refused(house: Any, caplog: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        answer = await ask(h, (await h.attempt()).key, "/completions", logprobs=5)
    assert answer.json()["choices"][0]["logprobs"]["tokens"]
    assert ignored(caplog) == ["logprobs"]
    assert (await ask(h, (await production(h)).key, "/completions", logprobs=5)).json()["error"]["param"] == "logprobs"


async def test_stop_token_ids_end_a_reply_in_training_and_production(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello, you")
    comma = h.engine.tokenizer.encode(",", add_special_tokens=False)[0]
    for attempt in (await h.attempt(), await production(h)):
        answer = (await ask(h, attempt.key, stop_token_ids=[comma])).json()
        assert (answer["choices"][0]["message"]["content"], answer["choices"][0]["finish_reason"]) == ("hello", "stop")
        [completion] = (await h.records(attempt)).completions
        assert completion.response_ids[-1] == comma
    assert (await ask(h, attempt.key, stop_token_ids=[-5])).json()["error"]["param"] == "stop_token_ids"


async def test_ignore_eos_holds_in_production(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await production(h)
    for ignore_eos in (True, False):
        await ask(h, attempt.key, ignore_eos=ignore_eos, max_tokens=3)
    ignoring, ordinary = (await h.records(attempt)).completions
    assert ignoring.sampling.stop_ids == ()
    assert ordinary.sampling.stop_ids


@pytest.mark.parametrize("path", ["/chat/completions", "/messages", "/messages/count_tokens"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("chat_template_kwargs", {"enable_thinking": False}), ("add_generation_prompt", False), ("continue_final_message", True)],
)
async def test_settings_of_the_template_that_the_renderer_does_not_honour_are_refused_by_name(
    house: Any, path: str, name: str, value: Any
) -> None:
    h = await house(lambda prompt, sampling: "hello", options={"rendering": RenderingSettings("default")})
    for attempt in (await h.attempt(), await production(h)):
        messages = [*HI, {"role": "assistant", "content": "The answer is"}] if name == "continue_final_message" else HI
        answer = await ask(h, attempt.key, path, messages=messages, **{name: value})
        assert answer.status_code == 400
        if path == "/chat/completions":
            assert answer.json()["error"]["param"] == name


async def test_settings_of_the_template_reach_the_prompt(house: Any) -> None:
    h = await house(lambda prompt, sampling: " 4", options={"rendering": RenderingSettings(chat_template=SHOUTING)})
    attempt = await h.attempt()
    await ask(h, attempt.key, chat_template_kwargs={"mark": "!"})
    await ask(h, attempt.key, add_generation_prompt=False)
    await ask(h, attempt.key, messages=[*HI, {"role": "assistant", "content": "2 + 2 ="}], continue_final_message=True)
    prompts = [h.text(completion.prompt_ids) for completion in (await h.records(attempt)).completions]
    assert prompts == ["user: hi!\nassistant: ", "user: hi\n", "user: hi\nassistant: 2 + 2 ="]


async def test_settings_of_the_template_that_ask_for_the_default_are_accepted(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    fields = {"chat_template_kwargs": {}, "add_generation_prompt": True, "continue_final_message": False}
    assert (await ask(h, attempt.key, **fields)).status_code == 200
    answer = await ask(h, attempt.key, continue_final_message=True, add_generation_prompt=True)
    assert answer.json()["error"]["message"].startswith("continue_final_message and add_generation_prompt")
    answer = await ask(h, attempt.key, continue_final_message=True)
    assert answer.json()["error"]["message"].startswith("continue_final_message is true, but the last message is of the role 'user'")


FORMS = ["/chat/completions", "/responses", "/completions", "/messages", "/messages/count_tokens"]


@pytest.mark.parametrize("path", FORMS)
async def test_training_names_an_unknown_field_once_and_production_refuses_it(house: Any, caplog: Any, path: str) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt, other = await h.attempt(), await production(h)
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        for _ in range(2):
            fields = {"enable_thinking": False, "new\nname": 1, "chat_template": None}
            assert (await ask(h, attempt.key, path, **fields)).status_code == 200
    assert ignored(caplog) == ["enable_thinking", repr("new\nname")]
    answer = await ask(h, other.key, path, enable_thinking=False)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "enable_thinking is not a field that the gateway knows. Leave it out."


@pytest.mark.parametrize("path", FORMS)
async def test_fields_without_an_effect_are_accepted_everywhere_without_a_word(house: Any, caplog: Any, path: str) -> None:
    h = await house(lambda prompt, sampling: "hello")
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        for attempt in (await h.attempt(), await production(h)):
            fields = {"user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "prediction": None}
            assert (await ask(h, attempt.key, path, **fields)).status_code == 200
    assert ignored(caplog) == []


IGNORED = [
    ("/chat/completions", {"reasoning_effort": "low", "prediction": {"type": "content", "content": "x"}, "moderation": {"model": "m"}}),
    ("/responses", {"context_management": [{"type": "compaction"}], "max_tool_calls": 3, "moderation": {"model": "m"}}),
    ("/messages", {"context_management": {"edits": [{}]}, "fallbacks": [{"model": "m"}]}),
    ("/messages/count_tokens", {"context_management": {"edits": [{}]}, "compaction": {"type": "summarize"}}),
]


@pytest.mark.parametrize(("path", "fields"), IGNORED)
async def test_a_field_that_no_model_here_has_is_ignored_and_named_once(house: Any, caplog: Any, path: str, fields: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        for attempt in (await h.attempt(), await production(h)):
            assert (await ask(h, attempt.key, path, **fields)).status_code == 200
    assert sorted(ignored(caplog)) == sorted(fields)


REFUSED = [
    ("/chat/completions", "web_search_options", {}), ("/chat/completions", "audio", {"voice": "x"}),
    ("/chat/completions", "functions", [{"name": "f"}]), ("/chat/completions", "function_call", "auto"),
    ("/responses", "background", True), ("/responses", "conversation", "conv_1"), ("/responses", "prompt", {"id": "x"}),
    ("/completions", "echo", True), ("/completions", "suffix", "x"),
    ("/messages", "compaction", {"type": "summarize"}), ("/messages", "container", "c"), ("/messages", "mcp_servers", [{"url": "x"}]),
    ("/messages/count_tokens", "mcp_servers", [{"url": "x"}]), ("/messages/count_tokens", "thread", {"type": "create"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "name", "value"), REFUSED)
async def test_a_field_that_changes_the_answer_is_refused_by_name_in_training_too(house: Any, path: str, name: str, value: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    answer = await ask(h, (await h.attempt()).key, path, **{name: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"{name} is not supported here. ")


async def test_names_of_messages_are_ignored_and_named_once(house: Any, caplog: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        for _ in range(2):
            assert (await ask(h, attempt.key, messages=[{"role": "user", "content": "hi", "name": "Ann"}])).status_code == 200
    assert ignored(caplog) == ["messages.name"]


async def test_fields_of_tools_and_settings_are_named_too(house: Any, caplog: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    tool = {"name": "f", "input_schema": {}, "cache_control": {"type": "ephemeral"}, "input_examples": [{}], "colour": "red"}
    fields = {"tools": [tool], "output_config": {"effort": "low"}, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    with caplog.at_level(logging.WARNING, "agentlightning.gateway"):
        assert (await ask(h, (await h.attempt()).key, "/messages", **fields)).status_code == 200
    assert sorted(ignored(caplog)) == ["output_config.effort", "thinking.budget_tokens", "tools.colour", "tools.input_examples"]
    answer = await ask(h, (await production(h)).key, "/messages", **fields)
    assert answer.json()["error"]["message"].startswith("tools.colour is not a field")


async def test_the_older_name_of_the_output_format_is_honoured(house: Any) -> None:
    h = await house(lambda prompt, sampling: "{}")
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}
    await ask(h, (await h.attempt()).key, "/messages", output_format={"type": "json_schema", "schema": schema})
    assert "colour" in h.engine.asked[0].prompt


SDK = [
    (ChatForm, CHAT, [chat.CompletionCreateParamsNonStreaming, chat.CompletionCreateParamsStreaming]),
    (CompletionsForm, COMPLETIONS, [legacy.CompletionCreateParamsNonStreaming, legacy.CompletionCreateParamsStreaming]),
    (ResponsesForm, RESPONSES, [responses.ResponseCreateParamsNonStreaming, responses.ResponseCreateParamsStreaming]),
    (MessagesForm, MESSAGES, [messages.MessageCreateParamsNonStreaming, messages.MessageCreateParamsStreaming]),
    (MessagesForm, MESSAGES, [beta_messages.MessageCreateParamsNonStreaming, beta_messages.MessageCreateParamsStreaming]),
    (MessagesForm, COUNT_TOKENS, [count.MessageCountTokensParams, beta_count.MessageCountTokensParams]),
]
OBJECTS = [
    (CHAT, "stream_options", [ChatCompletionStreamOptionsParam]),
    (RESPONSES, "tools", [FunctionToolParam]),
    (RESPONSES, "reasoning", [Reasoning]),
    (RESPONSES, "text", [ResponseTextConfigParam]),
    (MESSAGES, "tools", [ToolParam, BetaToolParam]),
    (MESSAGES, "output_config", [OutputConfigParam, BetaOutputConfigParam]),
    (MESSAGES, "thinking", [ThinkingConfigEnabledParam, BetaThinkingConfigAdaptiveParam]),
    (MESSAGES, "tool_choice", [ToolChoiceToolParam]),
]


def sdk_fields(types: list[Any]) -> set[str]:
    return {name for type in types for name in type.__required_keys__ | type.__optional_keys__}


@pytest.mark.parametrize(("form", "table", "types"), SDK)
def test_the_table_of_each_form_names_every_field_of_the_installed_client(form: Any, table: Parameters, types: list[Any]) -> None:
    assert sdk_fields(types) - table.names == set()
    read = set(form.body.__struct_fields__) - {"sent_tools"}
    assert read - table.names == set()
    parts = [table.honoured, table.ignored.keys(), table.refused.keys(), UNHONOURED.keys(), table.without_effect]
    both = table.honoured & table.without_effect  # of Responses, which repeat them
    assert both <= {"metadata", "store"}
    assert sum(map(len, parts)) - len(both) == len(set().union(*parts))
    assert {name for name in table.honoured if "." not in name} - read - {"reasoning"} == set()


@pytest.mark.parametrize(("table", "name", "types"), OBJECTS)
def test_the_tables_name_every_field_of_the_clients_tools_and_settings(table: Parameters, name: str, types: list[Any]) -> None:
    assert {f"{name}.{field}" for field in sdk_fields(types)} - table.names == set()


async def test_refusals_and_functions_of_a_history_are_read(house: Any) -> None:
    h = await house(lambda prompt, sampling: "hello")
    attempt = await h.attempt()
    history = [
        user("hi"),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I will not."}]},
        user("please"),
        {"role": "assistant", "content": None, "refusal": "No."},
        user("then look it up"),
        {"role": "assistant", "content": None, "function_call": {"name": "search", "arguments": '{"query": "x"}'}},
        {"role": "function", "name": "search", "content": "found x"},
    ]  # fmt: skip
    answer = await ask(h, attempt.key, messages=history)
    assert answer.status_code == 200, answer.text
    prompt = h.engine.asked[0].prompt
    for text in ("I will not.", "No.", "found x", "search"):
        assert text in prompt
    call = {"id": "call_1", "type": "function", "function": {"name": "search", "arguments": '{"query": "x"}'}}
    newer = [*history[:5], {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": "found x"}]
    await ask(h, attempt.key, messages=newer)
    assert h.engine.asked[1].prompt == prompt
    first, second = (await h.records(attempt)).calls
    assert first.request_hash == second.request_hash
