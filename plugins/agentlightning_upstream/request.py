"""The request to an upstream: the agent's own, plus the run's sampling and the fields needed for exact records.

Servers accept different fields. `levels` holds the extra fields of a request, fullest first. After a refusal, the gateway retries with
fewer. The last level adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentlightning.gateway.sampling import call_seed
from agentlightning.types import Rollout, Sampling

PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "top_k", "min_p")
"""Settings of the sampling distribution. They belong to the run."""
CONSTRAINTS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
LIMITS = ("max_tokens", "max_completion_tokens")

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Planned:
    """A planned request to an upstream."""

    body: Fields
    sampling: Sampling
    """The sampling settings, as far as the gateway knows. A setting that the request leaves to the upstream has the default of `Sampling`
    here."""
    levels: tuple[Fields, ...]
    """Extra fields, fullest first. The last level is empty."""
    inexact: str | None
    """The reason why the upstream's log-probabilities may differ from those of `Completion`. None if they are the same."""


def planned(path: str, asked: Fields, rollout: Rollout, call: int, model: str) -> Planned:
    """Plan the request to the upstream. `model` is its name there. If empty, the agent chooses."""
    body = {**asked, **({"model": model} if model else {})}
    if path == "/v1/responses":
        return _for_responses(body, rollout)
    own, chat = rollout.sampling, path == "/v1/chat/completions"
    if own is None:
        return Planned(body, _sampling(body), ({"return_token_ids": True}, {}), "the agent and the upstream chose the sampling settings")
    for name in PENALTIES:
        body.pop(name, None)
    stop = body.get("stop")
    stops = tuple(dict.fromkeys(((stop,) if isinstance(stop, str) else tuple(stop or ())) + own.stop))
    seed = call_seed(rollout, call, 0) % 2**31
    body |= {"temperature": own.temperature, "top_p": own.top_p, "seed": seed, **({"stop": list(stops)} if stops else {})}
    limit = _limit(body, own, LIMITS, LIMITS[0])
    sampling = Sampling(temperature=own.temperature, top_p=own.top_p, top_k=own.top_k, max_tokens=limit, stop=stops, seed=seed)
    scored: Fields = {"logprobs": body.get("logprobs") or (True if chat else 0)}
    # these override the upstream's own defaults
    exact = {**scored, "return_token_ids": True, "top_k": own.top_k, "min_p": 0.0, "repetition_penalty": 1.0}
    return Planned(body, sampling, (exact, {**scored, "return_token_ids": True}, scored, {}), _inexact(body, own))


def overridable(body: Fields) -> Fields:
    """The settings in a body that the run's sampling overrides. Constraints stay, and make the log-probabilities inexact."""
    return {name: body[name] for name in ("temperature", "top_p", "seed", *PENALTIES) if name in body}


def _inexact(body: Fields, own: Sampling) -> str | None:
    if own.temperature not in (0, 1):
        return f"temperature is {own.temperature:g}, and only some upstreams scale their log-probabilities by it"
    format: Any = body.get("response_format")
    if isinstance(format, dict) and format.get("type", "text") != "text":  # pyright: ignore[reportUnknownMemberType]
        return "response_format may constrain the upstream's sampling"
    if body.get("tool_choice") not in (None, "auto", "none"):
        return "tool_choice may constrain the upstream's sampling"
    constraints = [name for name in CONSTRAINTS if body.get(name)]
    return f"{constraints[0]} constrains the upstream's sampling" if constraints else None


def _for_responses(body: Fields, rollout: Rollout) -> Planned:
    own = rollout.sampling
    if own is not None:
        body |= {"temperature": own.temperature, "top_p": own.top_p}
        _limit(body, own, ("max_output_tokens",), "max_output_tokens")
    return Planned(body, _sampling(body), ({},), None)


def _limit(body: Fields, own: Sampling, names: tuple[str, ...], default: str) -> int | None:
    """Write the smaller limit into the body, under the agent's name for it. Return it."""
    fields = [name for name in names if isinstance(body.get(name), int)]
    limits = [body[name] for name in fields] + ([own.max_tokens] if own.max_tokens is not None else [])
    for name in limits and (fields or [default]):
        body[name] = min(limits)
    return min(limits, default=None)


def _sampling(body: Fields) -> Sampling:
    """Return the sampling settings of a body."""
    numbers = {name: body[name] for name in ("temperature", "top_p") if isinstance(body.get(name), int | float)}
    stop, seed, top_k = body.get("stop"), body.get("seed"), body.get("top_k")
    limits = [body[name] for name in (*LIMITS, "max_output_tokens") if isinstance(body.get(name), int)]
    stops = (stop,) if isinstance(stop, str) else tuple(text for text in stop or () if isinstance(text, str))
    return Sampling(
        **numbers,
        top_k=top_k if isinstance(top_k, int) and top_k > 0 else 0,
        max_tokens=min(limits, default=None),
        stop=stops,
        seed=seed if isinstance(seed, int) else None,
    )
