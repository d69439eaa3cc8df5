"""The parameters of other servers: those that no engine honours, those without an effect on a reply, and unknown ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

NEUTRAL: Mapping[str, Any] = {
    "presence_penalty": 0, "frequency_penalty": 0, "logit_bias": None, "min_p": 0, "repetition_penalty": 1, "length_penalty": 1,
    "typical_p": 1, "min_tokens": 0, "use_beam_search": None, "bad_words": None, "allowed_token_ids": None, "logits_processors": None,
    "top_logprobs": 0, "prompt_logprobs": None, "structured_outputs": None,
}  # fmt: skip
"""Settings of sampling that no engine honours, with the value that changes nothing. All that begin with `guided_` are such, too."""
WITHOUT_EFFECT = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "stream_options",
    "request_id", "priority", "cache_salt", "cache_control", "inference_geo",
})  # fmt: skip
"""Parameters that change no reply, here as elsewhere."""


def unhonoured(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of sampling in a body that no engine honours."""
    names = [
        name
        for name, value in fields.items()
        if (name in NEUTRAL or name.startswith("guided_")) and value not in (None, False, [], {}, NEUTRAL.get(name))
    ]
    logprobs = fields.get("logprobs")
    several = isinstance(logprobs, int) and logprobs > 1  # of completions: the log-probabilities of so many tokens
    return (*names, *(["logprobs"] if several else []))


def unknown(fields: Mapping[str, Any], own: Collection[str]) -> tuple[str, ...]:
    """The parameters in a body that this gateway does not know."""
    names = [name for name, value in fields.items() if value is not None and name not in own and name not in NEUTRAL]
    return tuple(name for name in names if name not in WITHOUT_EFFECT and not name.startswith("guided_"))
