"""One search: the library proposes and selects in a thread, and the run's rollouts score the candidates.

The library calls `stop` before each of its iterations. There the step before is recorded, with everything that a resumed run needs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from agentlightning.algorithms.base import Reflection, Session, Trial, returns_of
from agentlightning.algorithms.prompt_search import PromptCandidate, PromptSearch
from agentlightning.capture.prompts import prompts_of
from agentlightning.errors import ConfigError
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.trajectory.build import leave_out
from agentlightning.types import Task
from agentlightning_gepa.bridge import Bridge
from agentlightning_gepa.reflection import question
from agentlightning_gepa.traces import example

if TYPE_CHECKING:
    from agentlightning_gepa.algorithm import GEPA

T = TypeVar("T")
UNTRAINED = "the run optimises prompts, not weights"


class Search:
    """A search under way."""

    propose_new_texts: Any = None
    """To the library, a `Search` is an adapter whose proposals come from the argument `custom_candidate_proposer`."""

    def __init__(self, settings: GEPA, session: Session, bridge: Bridge, steps: Iterator[int], step: int) -> None:
        """`steps`: the steps after `step`, which has begun."""
        self._settings, self._session, self._bridge, self._steps = settings, session, bridge, steps
        self._trials = session.trials
        self._step: int | None = step
        self._of_step: list[Trial] = []
        self._calls, self._proposals = 0, 0
        """Trials and proposals of this step."""
        self._failure: Exception | None = None
        tasks, count = self._trials.tasks, min(settings.validation, len(self._trials.tasks))
        self._validation = [tasks[place * len(tasks) // count] for place in range(count)]
        self._search = session.search

    @property
    def search(self) -> PromptSearch:
        assert self._search is not None  # `begin` comes first
        return self._search

    # --- in the run's event loop ---

    async def begin(self) -> None:
        """Score the agent's own prompts, unless a resumed run has done so. Raises `ConfigError` if it asks for none."""
        if self._search is not None:
            return
        own = self._trials.prompts
        self._search = PromptSearch(candidates=[], rollouts=0, tokens=0, seed_prompts=own)
        trials, scores = await self._try(self._validation, own)
        prompts = asked_prompts(trials)
        unused = sorted(own.keys() - prompts.keys())
        if unused:
            self._session.say(
                f"The agent never asked for {', '.join(f'prompts.{name}' for name in unused)}; it asks for {', '.join(prompts)}. Check the "
                "names under [prompts]. The search leaves them alone."
            )
        scored = dict(zip([task.id for task in self._validation], scores, strict=True))
        self._update(candidates=[PromptCandidate(prompts=prompts, parents=[], scores=scored, step=0)])

    async def _try(self, tasks: Sequence[Task], prompts: dict[str, str]) -> tuple[list[Trial], list[float]]:
        """Return the rollouts of tasks, and the mean reward of each task. One without a reward counts as 0."""
        assert self._step is not None
        self._calls += 1
        size = self._settings.group_size
        trials = await self._trials.try_prompts(self._step, f"trial{self._calls}", tasks, {**self.search.seed_prompts, **prompts}, size)
        self._of_step += trials
        rewards = [trial.trajectory.reward for trial in trials]
        transitions = [transition for trial in trials for transition in trial.trajectory.transitions]
        self._update(
            rollouts=self.search.rollouts + len(trials),
            tokens=self.search.tokens + sum(len(one.prompt_ids) + len(one.response_ids) for one in transitions),
            unscored=self.search.unscored + sum(reward is None for reward in rewards),
        )
        return trials, [float(np.mean([reward or 0.0 for reward in rewards[at : at + size]])) for at in range(0, len(rewards), size)]

    async def _finish_step(self, state: Any) -> None:
        """Record the step that has ended, and begin the next one."""
        from agentlightning_gepa.state import candidates_of

        assert self._step is not None
        before = self.search.candidates
        candidates = candidates_of(state, before, self._step + 1, self._validation)
        accepted = len(candidates) - len(before)
        self._update(candidates=candidates, rejected=self.search.rejected + max(0, self._proposals - accepted))
        self._update(done=self._spent() is not None)
        trajectories = [leave_out(trial.trajectory, lambda _: UNTRAINED) for trial in self._of_step]
        nothing = [np.full(len(trajectory.transitions), np.nan) for trajectory in trajectories]
        metrics = {
            "prompts.candidates": float(len(candidates)),
            "prompts.accepted": float(accepted),
            "prompts.score": candidates[self.search.best()].score,
            "prompts.rollouts": float(self.search.rollouts),
            "prompts.tokens": float(self.search.tokens),
        }
        batch = make_batch(trajectories, nothing)
        await self._session.finish_step(self._step, trajectories, returns_of(trajectories), nothing, batch, metrics, self.search)
        self._of_step, self._calls, self._proposals = [], 0, 0
        self._step = next(self._steps, None)

    def _spent(self) -> str | None:
        """Why the search must end; None: another step fits the budget."""
        settings, spent = self._settings, self.search
        step = (2 * self._trials.tasks_per_step + len(self._validation)) * settings.group_size
        if settings.rollouts is not None and spent.rollouts + step > settings.rollouts:
            return f"{spent.rollouts} of {settings.rollouts} rollouts are spent, and a step may take {step}"
        if settings.tokens is not None and spent.tokens >= settings.tokens:
            return f"{spent.tokens:,} of {settings.tokens:,} tokens are spent"
        return None

    def _update(self, **changes: Any) -> None:
        self._search = replace(self.search, **changes)

    # --- in the thread of the library ---

    def optimize(self) -> None:
        """Search until the steps or the budget end. Raises the errors of the run."""
        from gepa.api import optimize

        from agentlightning_gepa.state import Minibatches, Selector, state_of

        settings, trials = self._settings, self._trials
        assert self._step is not None
        with TemporaryDirectory(prefix="agl-gepa-") as folder:
            state_of(self.search.candidates, self._step, self._validation).save(folder)
            optimize(
                seed_candidate=self.search.candidates[0].prompts,
                trainset=list(trials.tasks),
                valset=self._validation,
                adapter=self,
                candidate_selection_strategy=Selector(trials.seed),
                batch_sampler=Minibatches(lambda: self._bridge.call(self._next_tasks()), trials.tasks),
                skip_perfect_score=settings.perfect_reward is not None,
                perfect_score=1.0 if settings.perfect_reward is None else settings.perfect_reward,
                custom_candidate_proposer=self._propose,
                stop_callbacks=[self._stop],
                run_dir=folder,
                logger=_Quiet(),
                raise_on_exception=True,
            )

    async def _next_tasks(self) -> list[Task]:
        return self._trials.next_tasks()

    def evaluate(self, batch: list[Task], candidate: dict[str, str], capture_traces: bool = False) -> Any:
        """Score a candidate on tasks. Without traces the library asks for the scores of the first candidate, which are known."""
        from gepa.core.adapter import EvaluationBatch

        if not capture_traces:
            return EvaluationBatch(outputs=[None] * len(batch), scores=[self.search.candidates[0].scores[task.id] for task in batch])
        trials, scores = self._keeping_failures(lambda: self._bridge.call(self._try(batch, candidate)))
        size = self._settings.group_size
        groups = [trials[at : at + size] for at in range(0, len(trials), size)]
        return EvaluationBatch(outputs=[None] * len(batch), scores=scores, trajectories=groups)

    def make_reflective_dataset(self, candidate: dict[str, str], eval_batch: Any, components_to_update: list[str]) -> Any:
        """Return what the reflecting model sees of each prompt: a rollout of each task that asked for it."""

        def build() -> dict[str, list[dict[str, Any]]]:
            limit, groups = self._settings.trace_characters, eval_batch.trajectories
            examples = {name: [example(trials, name, limit) for trials in groups] for name in components_to_update}
            return {name: [one for one in of_name if one is not None] for name, of_name in examples.items()}

        return self._keeping_failures(build)

    def _propose(
        self, candidate: dict[str, str], reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]], components_to_update: list[str]
    ) -> dict[str, str]:
        """Ask the reflecting model for new texts. An empty or an unchanged text is no proposal."""
        from gepa.strategies.instruction_proposal import InstructionProposalSignature as Proposal

        texts: dict[str, str] = {}
        for name in components_to_update:
            if not (dataset := reflective_dataset.get(name)):
                continue
            prompt = question(self._settings.template, candidate[name], dataset)
            answer = self._keeping_failures(partial(self._reflect, prompt))
            self._update(tokens=self.search.tokens + answer.tokens)
            text = Proposal.output_extractor(answer.text.strip())["new_instruction"]
            if text and text != candidate[name]:
                texts[name] = text
        self._proposals += bool(texts)
        return texts

    def _reflect(self, prompt: str) -> Reflection:
        settings = self._settings
        return self._bridge.call(self._trials.reflect(self._step or 0, prompt, settings.reflection, settings.reflection_tokens))

    def _keeping_failures(self, work: Callable[[], T]) -> T:
        """The result of a function. Its error ends the search, though the library may go on after it."""
        if self._failure is not None:
            raise self._failure
        try:
            return work()
        except Exception as error:
            self._failure = error
            raise

    def _stop(self, gepa_state: Any) -> bool:
        """Record the step that has ended, and tell the library whether the search has."""
        if self._failure is not None:
            raise self._failure
        if self._step is not None and gepa_state.i >= self._step:
            self._bridge.call(self._finish_step(gepa_state))
        if (reason := self._spent()) is not None:
            self._session.say(f"The search ends: {reason}.")
            return True
        return self._step is None


def asked_prompts(trials: Sequence[Trial]) -> dict[str, str]:
    """Return the prompts that rollouts asked for. Raises `ConfigError` if there are none, or if one differs between rollouts."""
    prompts: dict[str, str] = {}
    for trial in trials:
        for name, text in prompts_of(trial.records).items() if trial.records is not None else ():
            if prompts.setdefault(name, text) != text:
                raise ConfigError(
                    f"The prompt {name!r} is not the same in all rollouts: {prompts[name]!r:.80} and {text!r:.80}. Keep its text constant, "
                    "and put the task into another message."
                )
    if not prompts:
        raise ConfigError(
            f"The agent asked for no prompt in {len(trials)} rollouts, so there is nothing to optimise. Call llm.prompt('system', "
            "default='...') in the agent, and use the text that it returns. A program reads AGL_PROMPTS, with texts from [prompts]."
        )
    return prompts


class _Quiet:
    """The library's log. A run has its own."""

    def log(self, message: str) -> None:
        logging.getLogger("agentlightning_gepa").debug("%s", message)
