"""The Adapter contract: records the structure of every agent that one framework runs.

An adapter never changes what an agent does. It records spans; the gateway records tokens, and a span of kind `llm` names the gateway's
call by its `call_id`. Where a call cannot be joined, the span says why in its attribute `unjoined`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class Adapter(Protocol):
    """A module, or an object, with these functions. Outside a rollout it records nothing."""

    def install(self, models: Collection[str] = ()) -> None:
        """Record every agent of this process from now on. A second call adds its `models`, and changes nothing else.

        Requests for the rollout's model go to the rollout's gateway. `models` are further model names, or patterns, that stand for it.
        Requests for other models stay as they are, and never carry the rollout's key.
        """
        ...

    def uninstall(self) -> None:
        """Undo `install`: the framework is as it was."""
        ...

    def current_span_id(self) -> str | None:
        """Return the id of the span that is open here, for `agl.reward(value, span=...)`; None outside one."""
        ...
