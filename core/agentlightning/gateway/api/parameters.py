"""What each form does with every field of its requests. A field that no table names is never dropped without a word.

A table has five parts:

    honoured        read by the form
    without_effect  accepted: these change no reply, here as elsewhere
    ignored         answered without them, with one warning for each that gives the reason
    refused         an error in every rollout that gives the way out
    SAMPLING        of all forms: overridden in training with one warning, refused in production unless they change nothing

Other fields are ignored with one warning in training, and refused in production. `tools.strict` is a field of the objects in `tools`: these
are checked where a table names one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from agentlightning.gateway.api.schema import Refused

SAMPLING: Mapping[str, Any] = {
    "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": None, "min_p": 0, "repetition_penalty": 1, "length_penalty": 1,
    "typical_p": 1, "min_tokens": 0, "use_beam_search": None, "bad_words": None, "allowed_token_ids": None, "logits_processors": None,
    "top_logprobs": 0, "prompt_logprobs": None, "structured_outputs": None,
}  # fmt: skip
"""Settings of sampling that no engine honours, with the value that changes nothing. All that begin with `guided_` are such, too."""
DEFAULTS: Mapping[str, Any] = {"truncation": "disabled", "reasoning.context": "auto", "reasoning.mode": "standard"}
"""Values of ignored fields that ask for nothing."""
UNKNOWN = "The gateway does not know it."
NO_EFFORT = "If the model's template has such a setting, send it in chat_template_kwargs."
NO_EDITS = "The model sees the whole history, and an error ends a conversation beyond the context."
ALL_TOOLS = "The model sees every tool, and calls it directly."


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The table of one form."""

    honoured: frozenset[str]
    without_effect: frozenset[str]
    ignored: Mapping[str, str]
    """The reason, by name."""
    refused: Mapping[str, str]
    """The way out, by name."""

    @cached_property
    def names(self) -> frozenset[str]:
        """Every field that the table names."""
        return self.honoured | self.without_effect | self.ignored.keys() | self.refused.keys() | SAMPLING.keys()

    @cached_property
    def objects(self) -> frozenset[str]:
        """The fields whose own fields the table names."""
        return frozenset(name.partition(".")[0] for name in self.names if "." in name)

    def check_refused(self, fields: Mapping[str, Any]) -> None:
        """Raises `Refused` for a field that no rollout may set."""
        for name, way_out in self.refused.items():
            if fields.get(name) not in (None, False, [], ""):
                raise Refused(f"{name} is not supported here. {way_out}", param=name)

    def unhonoured(self, fields: Mapping[str, Any], *, production: bool) -> dict[str, str]:
        """The fields of a body that the answer ignores, with the reason. Raises `Refused` in production for those that no table names, and
        for settings of sampling."""
        ignored: dict[str, str] = {}
        settings = unhonoured_sampling(fields)
        for name in settings if production else ():
            raise Refused(
                f"{name} is not supported, because the engine samples from the model's own distribution. Leave it out.", param=name
            )
        for name, value in self._flat(fields):
            if name in self.ignored:
                if value not in (None, False, [], {}, DEFAULTS.get(name)):
                    ignored[name] = self.ignored[name]
            elif value is not None and name not in self.names and not name.startswith("guided_"):
                if production:
                    shown = name if name.isprintable() else repr(name)
                    raise Refused(f"{shown[:100]} is not a field that the gateway knows. Leave it out.", param=name)
                ignored[name] = UNKNOWN
        return ignored

    def _flat(self, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Every field, then those of the objects that the table names."""
        yield from fields.items()
        for outer in sorted(self.objects & fields.keys()):
            values: Any = fields[outer]
            for value in cast("list[Any]", values) if isinstance(values, list) else [values]:
                for name, inner in cast("dict[str, Any]", value).items() if isinstance(value, dict) else ():
                    yield f"{outer}.{name}", inner


def unhonoured_sampling(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of sampling in a body that no engine honours."""
    names = [
        name
        for name, value in fields.items()
        if (name in SAMPLING or name.startswith("guided_")) and value not in (None, False, [], {}, SAMPLING.get(name))
    ]
    logprobs = fields.get("logprobs")
    several = isinstance(logprobs, int) and logprobs > 1  # of completions: the log-probabilities of so many tokens
    return (*names, *(["logprobs"] if several else []))


OURS = _names("""
    model stream stop max_tokens temperature top_p top_k seed stop_token_ids ignore_eos continue_final_message add_generation_prompt
    chat_template_kwargs return_token_ids
""")
"""Honoured in every form. Most are those of other servers of open models."""
SERVICE = _names("""
    user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention request_id priority
    cache_salt access_programs client_metadata
""")
"""Of accounts, caches and queues."""

CHAT = Parameters(
    honoured=OURS | _names("""
        messages tools tool_choice parallel_tool_calls response_format n logprobs max_completion_tokens modalities
        stream_options stream_options.include_usage
    """),
    without_effect=SERVICE | _names("stream_options.include_obfuscation"),
    ignored={
        "reasoning_effort": NO_EFFORT,
        "verbosity": NO_EFFORT,
        "prediction": "The engine samples every token.",
        "moderation": "The gateway moderates nothing.",
    },
    refused={
        "functions": "Use tools and tool_choice.",
        "function_call": "Use tools and tool_choice.",
        "audio": "Only text is supported. Leave it out.",
        "web_search_options": "The gateway hosts no tools. Offer a function in its place.",
    },
)  # fmt: skip

COMPLETIONS = Parameters(
    honoured=OURS | _names("prompt n logprobs best_of stream_options stream_options.include_usage"),
    without_effect=SERVICE | _names("stream_options.include_obfuscation"),
    ignored={},
    refused={
        "echo": "The engine reports nothing about prompt tokens. Put the prompt in front yourself.",
        "suffix": "The engine only continues a prompt. Leave it out.",
    },
)

RESPONSES = Parameters(
    honoured=OURS | _names("""
        input instructions previous_response_id tool_choice parallel_tool_calls max_output_tokens include metadata store
        tools tools.type tools.name tools.description tools.parameters tools.strict tools.tools tools.format
        text text.format reasoning
    """),
    without_effect=SERVICE | _names("stream_options"),
    ignored={
        "reasoning.effort": NO_EFFORT,
        "reasoning.summary": "The answer has the model's own reasoning.",
        "reasoning.generate_summary": "The answer has the model's own reasoning.",
        "reasoning.context": "The prompt keeps the reasoning of the replies that it continues.",
        "reasoning.mode": NO_EFFORT,
        "text.verbosity": NO_EFFORT,
        "truncation": NO_EDITS,
        "context_management": NO_EDITS,
        "max_tool_calls": "It limits hosted tools, and the gateway hosts none.",
        "moderation": "The gateway moderates nothing.",
        "image": "Only text is supported.",
        "tools.allowed_callers": ALL_TOOLS,
        "tools.defer_loading": ALL_TOOLS,
        "tools.output_schema": "The model sees the parameters only.",
        "tools.async": "The model waits for the results of its calls.",
    },
    refused={
        "background": "Leave it out and wait, or stream.",
        "background_options": "Leave it out and wait, or stream.",
        "conversation": "Use previous_response_id, or send the whole input.",
        "prompt": "Write out the instructions and the input.",
    },
)  # fmt: skip

MESSAGES = Parameters(
    honoured=OURS | _names("""
        messages system stop_sequences thread
        tools tools.type tools.name tools.description tools.input_schema tools.strict
        tool_choice tool_choice.type tool_choice.name tool_choice.disable_parallel_tool_use
        thinking thinking.type output_config output_config.format output_format
    """),
    without_effect=SERVICE | _names("""
        betas cache_control inference_geo speed diagnostics user_profile_id workspace_id billing_policy fallback_credit_token
        tools.cache_control tools.eager_input_streaming
    """),
    ignored={
        "thinking.budget_tokens": NO_EFFORT,
        "thinking.display": "The answer has the model's own reasoning.",
        "thinking.block_binding": "The gateway signs no reasoning.",
        "output_config.effort": NO_EFFORT,
        "output_config.task_budget": NO_EFFORT,
        "context_management": NO_EDITS,
        "fallbacks": "The gateway serves one model.",
        "tools.allowed_callers": ALL_TOOLS,
        "tools.defer_loading": ALL_TOOLS,
        "tools.input_examples": "The model sees the schema only.",
    },
    refused={
        "container": "The gateway runs no tools. Offer tools that the agent runs.",
        "mcp_servers": "The gateway runs no tools. Offer tools that the agent runs.",
        "compaction": "The gateway writes no summaries. Ask the model for one in a message.",
    },
)  # fmt: skip

COUNT_TOKENS = replace(
    MESSAGES,
    honoured=MESSAGES.honoured - {"thread"},
    ignored={**MESSAGES.ignored, "compaction": "The count is that of the conversation as sent."},
    refused={
        "thread": "Send the whole conversation.",
        **{name: way_out for name, way_out in MESSAGES.refused.items() if name != "compaction"},
    },
)
