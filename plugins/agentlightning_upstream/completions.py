"""Turns an upstream's replies into completions. A missing token id or log-probability stays missing. Nothing is tokenised again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentlightning.gateway.auth import Incoming
from agentlightning.gateway.conversation import History
from agentlightning.types import CallStatus, Completion, FloatArray, floats, ints
from agentlightning_upstream.replies import Choice
from agentlightning_upstream.request import Planned
from agentlightning_upstream.wire import Reader, ResponseReader


@dataclass(frozen=True, slots=True, eq=False)
class Forwarded:
    """A request that the upstream has started to answer."""

    incoming: Incoming
    history: History | None
    """None if the gateway cannot read the request's conversation."""
    plan: Planned
    level: int
    """The plan level that the upstream accepted."""
    reader: Reader | ResponseReader

    def completions(self, status: CallStatus) -> list[Completion]:
        """See `Draft.completions`."""
        return [self._completion(place, choice, status) for place, choice in sorted(self.reader.choices.items())]

    def _completion(self, place: int, choice: Choice, status: CallStatus) -> Completion:
        missing = self._missing_ids(choice)
        prompt, ids = ([], []) if missing is not None else (choice.prompt_ids or [], choice.ids or [])
        logprobs, missing = (None, missing) if missing is not None else self._logprobs(choice)
        message, call_id = choice.message(), self.incoming.seen.id
        ended = choice.finish if status == "completed" else None
        return Completion(
            call_id=call_id,
            attempt_id=self.incoming.state.attempt.id,
            choice=place,
            policy=self.incoming.state.rollout.policy,
            prompt_ids=ints(prompt),
            response_ids=ints(ids),
            logprobs=logprobs,
            versions=ints(np.full(len(ids), -1)),
            sampling=self.plan.sampling,
            finish_reason=ended or ("cancelled" if status == "cancelled" else "error"),
            continues=self._continued(prompt),
            conversation=f"upstream.{call_id}" if self.history is None else self.history.conversation(0, message),
            message=message,
            missing=missing,
        )

    def _missing_ids(self, choice: Choice) -> str | None:
        """Return the reason why a reply has no token ids, or None if it has them."""
        if choice.ids is None or choice.prompt_ids is None or choice.broken:
            return "token ids missing: the upstream returned none"
        count = self.reader.counted if len(self.reader.choices) == 1 else None
        if count is not None and choice.finish is not None and count != len(choice.ids):
            return f"token ids missing: the upstream counted {count} tokens and returned {len(choice.ids)} ids"
        return None

    def _logprobs(self, choice: Choice) -> tuple[FloatArray | None, str | None]:
        """Return the log-probabilities, or the reason why a reply has none."""
        if self.plan.inexact is not None:
            return None, f"no logprobs: {self.plan.inexact}"
        if self.level:
            return None, "no logprobs: the upstream rejected some sampling settings, so its own defaults may apply"
        logprobs, ids = choice.logprobs or [], choice.ids or []
        if len(logprobs) != len(ids):
            return None, f"no logprobs: the upstream returned {len(logprobs)} for {len(ids)} tokens"
        return floats(np.array(logprobs, np.float32)), None

    def _continued(self, prompt: list[int]) -> str | None:
        """Return the reply that the messages continue, if the prompt starts with its tokens."""
        if not prompt or self.history is None:
            return None
        earlier = self.incoming.state.conversations.find(self.history).reply
        if earlier is None:
            return None
        tokens = [*earlier.prompt_ids.tolist(), *earlier.response_ids.tolist()]
        return earlier.id if prompt[: len(tokens)] == tokens else None
