"""The checks of the canonical request, for every form."""

from __future__ import annotations

import json
from contextlib import suppress

from agentlightning.gateway.api.body import MAX_DEPTH, check_depth
from agentlightning.gateway.api.json_schema import check_schema
from agentlightning.gateway.api.schema import ChatRequest, Message, Refused, forced_tool

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
RANGES: tuple[tuple[str, float, float], ...] = (
    ("n", 1, 128), ("temperature", 0, 2), ("top_p", 0, 1), ("max_tokens", 1, 2**31 - 1), ("max_completion_tokens", 1, 2**31 - 1),
    ("top_k", -1, 2**31 - 1),
)  # fmt: skip


def check_request(request: ChatRequest) -> None:
    """Refuse unsupported settings of any form. Errors name fields as OpenAI's chat form does."""
    if not request.messages:
        raise Refused("messages is empty. Send at least one.", param="messages")
    for i, message in enumerate(request.messages):
        _check_message(message, f"messages[{i}]")
    for name, low, high in RANGES:
        value = getattr(request, name)
        if value is not None and not low <= value <= high:
            raise Refused(f"{name} is {value}. Set it from {low} to {high}.", param=name)
    if request.top_p == 0:
        raise Refused("top_p is 0. Set it above 0; for greedy replies set temperature to 0.", param="top_p")
    if any(not 0 <= id < 2**31 for id in request.stop_token_ids or ()):
        raise Refused("stop_token_ids has a number that is no token id. Send ids of tokens.", param="stop_token_ids")
    _check_template_settings(request)
    if request.format is not None and request.format.type not in ("json_object", "json_schema"):
        raise Refused(
            f"response_format.type is {request.format.type!r}. Use text, json_object or json_schema.", param="response_format.type"
        )
    if request.format is not None and request.format.type == "json_schema" and request.format.json_schema is None:
        raise Refused("response_format.json_schema is missing. Add a name and a schema.", param="response_format.json_schema")
    if any(modality != "text" for modality in request.modalities or ()):
        raise Refused("modalities has more than text, and only text is supported. Leave it out.", param="modalities")
    if any(not stop for stop in request.stops):
        raise Refused("stop has an empty string. Remove it.", param="stop")
    for i, tool in enumerate(request.tools or ()):
        if tool.type != "function":
            raise Refused(f"tools[{i}].type is {tool.type!r}. Use function.", param=f"tools[{i}].type")
        check_schema(tool.function.parameters or {}, f"tools[{i}].function.parameters")
    if request.format is not None and request.format.json_schema is not None:
        check_schema(request.format.json_schema.schema or {}, "response_format.json_schema.schema")
    forced_tool(request)


def _check_template_settings(request: ChatRequest) -> None:
    settings = request.template_settings
    if not settings.get("continue_final_message"):
        return
    if request.add_generation_prompt:
        raise Refused(
            "continue_final_message and add_generation_prompt are both true. Set one of them to false.", param="continue_final_message"
        )
    if request.messages[-1].role != "assistant":
        raise Refused(
            f"continue_final_message is true, but the last message is of the role {request.messages[-1].role!r}. End with an assistant "
            "message.",
            param="continue_final_message",
        )


def _check_message(message: Message, where: str) -> None:
    if message.role not in ROLES:
        raise Refused(f"{where}.role is {message.role!r}. Use one of {', '.join(ROLES)}.", param=f"{where}.role")
    for i, part in enumerate(message.content if isinstance(message.content, list) else ()):
        if (part.refusal if part.type == "refusal" else part.text if part.type == "text" else None) is None:
            raise Refused(
                f"{where}.content[{i}] is {part.type!r}. Send text: only text content is supported.", param=f"{where}.content[{i}]"
            )
    if message.function_call is not None:
        _check_arguments(message.function_call.arguments, f"{where}.function_call.arguments")
    for i, call in enumerate(message.tool_calls or ()):
        _check_arguments(call.function.arguments, f"{where}.tool_calls[{i}].function.arguments")
    for name in ("tool_calls", "function_call"):
        if getattr(message, name) and message.role != "assistant":
            raise Refused(f"{where} has {name}, but its role is {message.role!r}. Only an assistant calls tools.", param=f"{where}.{name}")


def _check_arguments(arguments: str, where: str) -> None:
    """Text that is no JSON is a model's mistake, and stays. A nesting that no reader of the history can follow is refused."""
    with suppress(ValueError):
        try:
            check_depth(json.loads(arguments), where)
        except RecursionError as error:
            raise Refused(f"{where} is nested too deeply. Use at most {MAX_DEPTH} levels.", param=where) from error
