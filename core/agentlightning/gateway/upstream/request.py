"""What the gateway asks of an upstream: the agent's own request, with the run's sampling and what exact records need.

Servers differ in what they take. What is added to a request stands in `levels`, the fullest first; one that is refused is asked again with
less, and the last level is the agent's own request with nothing added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agentlightning.gateway.sampling import call_seed
from agentlightning.types import Rollout, Sampling

PENALTIES = ("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "top_k", "min_p")
"""Settings that change the distribution, which belongs to the run."""
CONSTRAINTS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
LIMITS = ("max_tokens", "max_completion_tokens")

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to an upstream, before it is sent."""

    body: Fields
    sampling: Sampling
    """As far as the gateway knows it: what is not said is left to the upstream, and stands here with the default of `Sampling`."""
    levels: tuple[Fields, ...]
    """What is added, the fullest first; the last adds nothing."""
    inexact: str | None
    """Why the upstream's log-probabilities would not be those of `Completion`; None: they are."""


def planned(path: str, asked: Fields, rollout: Rollout, call: int, model: str) -> Planned:
    """The request to send for the request of an agent. `model`: as the upstream is to be asked for; empty: as the agent asks."""
    body = {**asked, **({"model": model} if model else {})}
    if path == "/v1/responses":
        return _for_responses(body, rollout)
    own, chat = rollout.sampling, path == "/v1/chat/completions"
    if own is None:
        return Planned(body, _sampling(body), ({"return_token_ids": True}, {}), "the agent chose how to sample, and the upstream the rest")
    for name in PENALTIES:
        body.pop(name, None)
    stop = body.get("stop")
    stops = tuple(dict.fromkeys(((stop,) if isinstance(stop, str) else tuple(stop or ())) + own.stop))
    seed = call_seed(rollout, call, 0) % 2**31
    body |= {"temperature": own.temperature, "top_p": own.top_p, "seed": seed, **({"stop": list(stops)} if stops else {})}
    limit = _limit(body, own, LIMITS, LIMITS[0])
    sampling = Sampling(temperature=own.temperature, top_p=own.top_p, top_k=own.top_k, max_tokens=limit, stop=stops, seed=seed)
    scored: Fields = {"logprobs": body.get("logprobs") or (True if chat else 0)}
    # without these, what the upstream's own defaults are would decide
    exact = {**scored, "return_token_ids": True, "top_k": own.top_k, "min_p": 0.0, "repetition_penalty": 1.0}
    return Planned(body, sampling, (exact, {**scored, "return_token_ids": True}, scored, {}), _inexact(body, own))


def _inexact(body: Fields, own: Sampling) -> str | None:
    if own.temperature not in (0, 1):
        return f"temperature is {own.temperature:g}, and upstreams differ in whether their log-probabilities are those of temperature 1"
    format: Any = body.get("response_format")
    if isinstance(format, dict) and format.get("type", "text") != "text":  # pyright: ignore[reportUnknownMemberType]
        return "response_format may constrain what an upstream samples"
    if body.get("tool_choice") not in (None, "auto", "none"):
        return "tool_choice may constrain what an upstream samples"
    given = [name for name in CONSTRAINTS if body.get(name)]
    return f"{given[0]} constrains what the upstream samples" if given else None


def _for_responses(body: Fields, rollout: Rollout) -> Planned:
    own = rollout.sampling
    if own is not None:
        body |= {"temperature": own.temperature, "top_p": own.top_p}
        _limit(body, own, ("max_output_tokens",), "max_output_tokens")
    return Planned(body, _sampling(body), ({},), None)


def _limit(body: Fields, own: Sampling, names: tuple[str, ...], default: str) -> int | None:
    """Put the smaller of the two limits into the body, under the name that the agent uses."""
    given = [name for name in names if isinstance(body.get(name), int)]
    limits = [body[name] for name in given] + ([own.max_tokens] if own.max_tokens is not None else [])
    for name in limits and (given or [default]):
        body[name] = min(limits)
    return min(limits, default=None)


def _sampling(body: Fields) -> Sampling:
    """What a body says of the sampling."""
    numbers = {name: body[name] for name in ("temperature", "top_p") if isinstance(body.get(name), int | float)}
    stop, seed, top_k = body.get("stop"), body.get("seed"), body.get("top_k")
    limits = [body[name] for name in (*LIMITS, "max_output_tokens") if isinstance(body.get(name), int)]
    stops = (stop,) if isinstance(stop, str) else tuple(each for each in stop or () if isinstance(each, str))
    return Sampling(
        **numbers,
        top_k=top_k if isinstance(top_k, int) and top_k > 0 else 0,
        max_tokens=min(limits, default=None),
        stop=stops,
        seed=seed if isinstance(seed, int) else None,
    )
