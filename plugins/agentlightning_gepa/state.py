"""The library's state from the values that a run keeps, and back. The library's own pickles stay in a temporary folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from gepa.core.state import GEPAState, ValsetEvaluation
from gepa.strategies.candidate_selector import ParetoCandidateSelector

from agentlightning.algorithms.prompt_search import PromptCandidate
from agentlightning.errors import ConfigError
from agentlightning.types import Task


def state_of(candidates: Sequence[PromptCandidate], step: int, validation: Sequence[Task]) -> GEPAState[None, int]:
    """Return the library's state after so many steps."""

    def evaluation(candidate: PromptCandidate) -> ValsetEvaluation[None, int]:
        missing = [task.id for task in validation if task.id not in candidate.scores]
        if missing or len(validation) != len(candidate.scores):
            raise ConfigError(
                "The validation tasks are not those of the run before, so its candidates have no comparable scores. Resume with the same "
                "tasks and algorithm.validation."
            )
        scores = {place: candidate.scores[task.id] for place, task in enumerate(validation)}
        return ValsetEvaluation(outputs_by_val_id={}, scores_by_val_id=scores, objective_scores_by_val_id=None)

    first, *rest = candidates
    state: GEPAState[None, int] = GEPAState(first.prompts, evaluation(first))
    state.num_full_ds_evals, state.total_num_evals = len(candidates), 0
    for candidate in rest:
        state.update_state_with_new_program(
            parent_program_idx=list(candidate.parents),
            new_program=candidate.prompts,
            valset_evaluation=evaluation(candidate),
            run_dir=None,
            num_metric_calls_by_discovery_of_new_program=0,
        )
    state.named_predictor_id_to_update_next_for_program_candidate = [candidate.turn for candidate in candidates]
    state.i = step - 1
    return state


def candidates_of(state: GEPAState[Any, int], before: Sequence[PromptCandidate], step: int, tasks: Sequence[Task]) -> list[PromptCandidate]:
    """Return the candidates of a state. `before`: those of the step before; later ones were found in `step`."""
    return [
        PromptCandidate(
            prompts=dict(prompts),
            parents=[parent for parent in state.parent_program_for_candidate[place] if parent is not None],
            scores={tasks[number].id: score for number, score in state.prog_candidate_val_subscores[place].items()},
            step=before[place].step if place < len(before) else step,
            turn=state.named_predictor_id_to_update_next_for_program_candidate[place],
        )
        for place, prompts in enumerate(state.program_candidates)
    ]


class Selector:
    """Chooses from the Pareto front with a seed for each step, so that a resumed run chooses as an uninterrupted one."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def select_candidate_idx(self, state: Any) -> int:
        return ParetoCandidateSelector(random.Random(f"{self._seed}/{state.i}")).select_candidate_idx(state)  # noqa: S311


class Minibatches:
    """Gives the places of a step's tasks."""

    def __init__(self, next_tasks: Callable[[], Sequence[Task]], tasks: Sequence[Task]) -> None:
        self._next, self._places = next_tasks, {task.id: place for place, task in enumerate(tasks)}

    def next_minibatch_ids(self, loader: Any, state: Any) -> list[int]:
        return [self._places[task.id] for task in self._next()]
