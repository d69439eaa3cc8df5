"""Which of a run's policies answers a call.

The model that a request names decides: a request for model `writer` goes to the policy of that name. Otherwise the agent's name decides, as
far as the request tells it. Every other call goes to the first policy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from agentlightning.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PolicyChoice:
    """The policies of a run by name, the default first. Each has names or patterns (`fnmatch`) of its agents; the first match counts."""

    agents: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])
    """Empty: the run has one policy, which answers every call."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.agents)

    @property
    def default(self) -> str:
        """The policy of calls whose agent is unknown, or belongs to none. Only for a run with named policies."""
        return self.names[0]

    def of_agent(self, agent: str | None) -> str | None:
        """The policy of an agent; None: it belongs to none, or its name is unknown."""
        if agent is None:
            return None
        return next((name for name, patterns in self.agents.items() if any(fnmatchcase(agent, pattern) for pattern in patterns)), None)

    def choose(self, model: str, agent: str | None) -> str:
        """The policy of a request for a model from an agent. Raises `ConfigError` if model and agent name different policies."""
        own = self.of_agent(agent)
        if model not in self.agents:
            return own or self.default
        if own not in (None, model):
            raise ConfigError(
                f"Agent {agent!r} asks for model {model!r}, but policy {own!r} has this agent. Ask for model {own!r}, or add the agent to "
                f"[policies.{model}]."
            )
        return model
