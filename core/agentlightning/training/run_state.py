"""The values that a run folder keeps: the state of the run, and the contribution of each rollout to a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlightning.training.choice import Choice, Evaluation
from agentlightning.training.diagnosis import Diagnosis
from agentlightning.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run between two steps."""

    step: int = 0
    """Finished steps."""
    sampler: JSON = None
    """The sampler's own state: its position in the tasks."""
    pending: list[JSON] = field(default_factory=list[JSON])
    """Groups of rollouts that a later step trains on and that have started already."""
    best: float | None = None
    """Highest eval reward so far; None: never measured."""
    evals_without_gain: int = 0
    """Evaluations in a row without a higher reward."""
    first: Evaluation | None = None
    """The evaluation before training."""
    strongest: Evaluation | None = None
    """The evaluation after training began with the highest mean reward."""
    choice: Choice | None = None
    """The step with the best weights; None: no step was evaluated after training began."""
    unlogged: dict[str, JSON] | None = None
    """Metrics of the last finished step while its evaluation is due; None: they are in `metrics.jsonl`."""
    diagnosis: Diagnosis | None = None
    """Why the run does not learn; None: it does, or it is too early to tell."""
    started: float = 0.0
    """When the run began, seconds since the epoch."""
    seconds: float = 0.0
    """Time spent, over all resumptions."""
    finished: bool = False
    """Whether the last step is finished and logged."""

    @property
    def best_step(self) -> int | None:
        """The step with the best weights."""
        return None if self.choice is None else self.choice.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The contribution of one rollout to a training step. `trained` and `excluded` together are all tokens of its winning attempt."""

    returns: tuple[float | None, ...] = ()
    """(transitions,) the credit of each transition; None: no return."""
    advantages: tuple[float | None, ...] = ()
    """(transitions,) None: the transition was not trained, so it has none."""
    trained: int = 0
    """Sampled tokens that were trained."""
    excluded: dict[str, int] = field(default_factory=dict[str, int])
    """Sampled tokens that were not trained, by reason."""
