"""The values that a run folder keeps: the state of the run, and the contribution of each rollout to a step."""

from __future__ import annotations

from dataclasses import dataclass, field

from agentlightning.algorithms.prompt_search import PromptSearch
from agentlightning.training.choice import Choice, Evaluation
from agentlightning.training.diagnosis import Diagnosis
from agentlightning.training.eval_rollouts import Kind
from agentlightning.types import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The last evaluation of a run."""

    step: int
    version: int
    """Of the policy."""
    measured: float
    """When it ran, seconds since the epoch."""
    prompts: dict[str, str] = field(default_factory=dict[str, str])
    """Texts that replaced the agent's own prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReusedEvaluation:
    """An evaluation that did not run, because these weights were evaluated before."""

    step: int
    kind: Kind
    run: str
    """Folder of the run that has the rollouts, relative to this run's folder (`.`: this run)."""
    run_step: int
    """Their step in that run."""
    measured: float
    """When they ran, seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvaluation:
    """An evaluation of the model before training that other runs may reuse (`evaluation.json`). A search for prompts has several."""

    step: int
    measured: float
    """When it ran, seconds since the epoch."""
    kinds: dict[Kind, str]
    code: dict[str, str]
    """As in `EvaluationKey`."""


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
    """The step with the best weights (0: the model before training); None: no step was evaluated after training began."""
    evaluated: Evaluated | None = None
    """The last evaluation; None: there was none."""
    reused: list[ReusedEvaluation] = field(default_factory=list[ReusedEvaluation])
    """The evaluations of this run whose rollouts ran earlier."""
    unlogged: dict[str, JSON] | None = None
    """Metrics of the last finished step while its evaluation is due; None: they are in `metrics.jsonl`."""
    search: PromptSearch | None = None
    """The search for prompts; None: the run optimises weights alone."""
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
