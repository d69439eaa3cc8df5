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
from agentlightning.capture.prompts import asked_texts
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
        self._any_step = step > 0
        """Whether a step has ended. A budget of tokens ends the search after one."""
        self._of_step: list[Trial] = []
        self._calls, self._proposals = 0, 0
        """Trials and proposals of this step."""
        self._failure: Exception | None = None
        self._told: set[str] = set()
        """Prompts that the search leaves alone, and other troubles that were said."""
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
        self._check_budget()
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

    def _check_budget(self) -> None:
        """Raise `ConfigError` if no step fits the budget."""
        budget, first = self._settings.rollouts, len(self._validation) * self._settings.group_size
        if budget is not None and budget < first + self._largest_step:
            raise ConfigError(
                f"algorithm.rollouts is {budget}, but scoring the agent's own prompts takes {first}, and a step up to {self._largest_step} "
                f"more. Set at least {first + self._largest_step}, or lower validation or tasks_per_step."
            )

    @property
    def _largest_step(self) -> int:
        """Rollouts of a step whose proposal is accepted."""
        return (2 * self._trials.tasks_per_step + len(self._validation)) * self._settings.group_size

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._session.say(text)

    def _tell_new_prompts(self, trials: Sequence[Trial]) -> None:
        """Say which prompts rollouts ask for that are not part of the search."""
        prompts = self.search.candidates[0].prompts
        for trial in trials:
            for name, _ in asked_texts(trial.records) if trial.records is not None else ():
                if name not in prompts:
                    self._say_once(
                        f"prompt {name}",
                        f"A rollout asked for prompts.{name}, but those of the validation tasks did not when the search began. The search "
                        "leaves it alone. Ask for every prompt in every rollout.",
                    )

    async def _try(self, tasks: Sequence[Task], prompts: dict[str, str]) -> tuple[list[Trial], list[float]]:
        """Return the rollouts of tasks, and the mean reward of each task. One without a reward counts as 0."""
        assert self._step is not None
        self._calls += 1
        size = self._settings.group_size
        trials = await self._trials.try_prompts(self._step, f"trial{self._calls}", tasks, {**self.search.seed_prompts, **prompts}, size)
        self._of_step += trials
        if self.search.candidates:
            self._tell_new_prompts(trials)
        self._check_counts(trials)
        rewards = [trial.trajectory.reward for trial in trials]
        transitions = [transition for trial in trials for transition in trial.trajectory.transitions]
        self._update(
            rollouts=self.search.rollouts + len(trials),
            tokens=self.search.tokens + sum(len(one.prompt_ids) + len(one.response_ids) for one in transitions),
            unscored=self.search.unscored + sum(reward is None for reward in rewards),
        )
        return trials, [float(np.mean([reward or 0.0 for reward in rewards[at : at + size]])) for at in range(0, len(rewards), size)]

    def _check_counts(self, trials: Sequence[Trial]) -> None:
        """Raise `ConfigError` if a budget of tokens cannot be kept, because nobody tells how many there are."""
        if self._settings.tokens is None:
            return
        completions = [one for trial in trials if trial.records is not None for one in trial.records.completions]
        if (missing := next((one.missing for one in completions if one.missing and not len(one.response_ids)), None)) is not None:
            raise ConfigError(
                f"algorithm.tokens is set, but nobody counts the tokens of replies ({missing}). Set algorithm.rollouts instead."
            )

    async def _finish_step(self, state: Any) -> None:
        """Record the step that has ended, and begin the next one."""
        from agentlightning_gepa.state import candidates_of

        assert self._step is not None
        before = self.search.candidates
        candidates = candidates_of(state, before, self._step + 1, self._validation)
        accepted = len(candidates) - len(before)
        self._update(candidates=candidates, rejected=self.search.rejected + max(0, self._proposals - accepted))
        self._any_step = True
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
        settings, spent, step = self._settings, self.search, self._largest_step
        if settings.rollouts is not None and spent.rollouts + step > settings.rollouts:
            return f"{spent.rollouts} of {settings.rollouts} rollouts are spent, and a step may take {step}"
        if settings.tokens is not None and spent.tokens >= settings.tokens and self._any_step:
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
            if not text:
                self._say_once(
                    "empty", "The reflecting model returned no text, so there is no proposal. Check algorithm.reflection_tokens."
                )
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
    """Return the prompts that rollouts asked for. Raises `ConfigError` if there are none, or if one has several texts."""
    prompts: dict[str, str] = {}
    for trial in trials:
        for name, text in asked_texts(trial.records) if trial.records is not None else ():
            if prompts.setdefault(name, text) != text:
                raise ConfigError(
                    f"The prompt {name!r} is not the same everywhere: {prompts[name]!r:.80} and {text!r:.80}. Keep its text constant, and "
                    "put the task into another message."
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
