"""The values of a search for prompts: its candidates, and what it has cost. A run keeps them in its state and shows them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCandidate:
    """Texts for all prompts of an agent, and their scores."""

    prompts: dict[str, str]
    """The texts by name."""
    parents: list[int]
    """The candidates that it was made from, by their place in the search; empty: the agent's own prompts."""
    scores: dict[str, float]
    """The mean reward of each validation task, by id."""
    step: int
    """The step that found it, from 1; 0: the start."""
    turn: int = 0
    """Which of its prompts the search changes next, by its place in `prompts`."""

    @property
    def score(self) -> float:
        """The mean over the validation tasks."""
        return float(np.mean(list(self.scores.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSearch:
    """A search for prompts after a step."""

    candidates: list[PromptCandidate]
    """In the order in which they were found. The first has the agent's own prompts."""
    rollouts: int
    """Rollouts so far, without those of evaluations."""
    tokens: int
    """Prompt and sampled tokens of these rollouts and of the reflections, as far as they were told."""
    rejected: int = 0
    """Proposals that were not better than their parent on the tasks of a step."""
    unscored: int = 0
    """Rollouts without a reward, which count as 0 in the search."""
    done: bool = False
    """Whether its budget is spent."""
    seed_prompts: dict[str, str] = field(default_factory=dict[str, str])
    """The texts that the config set before the search."""

    def best(self, step: int | None = None) -> int:
        """Return the place of the best candidate on the validation tasks, among those found up to a step. Of equal ones the first."""
        places = [place for place, candidate in enumerate(self.candidates) if step is None or candidate.step <= step]
        return max(places, key=lambda place: (self.candidates[place].score, -place))

    def in_force(self, step: int | None = None) -> dict[str, str]:
        """Return the texts that replace the agent's own prompts after a step."""
        place = self.best(step)
        return self.candidates[place].prompts if place else self.seed_prompts
