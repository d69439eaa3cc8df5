"""On-policy distillation: a teacher scores the tokens that the student sampled, and each token's advantage is

    teacher_coef * (log teacher(token) - log student(token)),

minus the one-sample (k1) estimate of the reverse KL divergence KL(student || teacher) at that token. The student's log-probability is the
recorded one. The expected gradient is that of the divergence at each prefix, with the distribution of prefixes fixed: the effect of a token
on later prefixes is left out (a discount of 0). Sources: arXiv 2306.13649 (GKD), 2306.08543 (MiniLLM, which keeps later prefixes), and
thinkingmachines.ai/blog/on-policy-distillation (per-token reverse KL as the advantage).
"""

from __future__ import annotations

import numpy as np

from agentlightning.algorithms.base import Session
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.batch.build import make_batch
from agentlightning.types import Doubles


async def ask_teacher(session: Session, rollouts: RolloutArrays, advantage: Doubles) -> tuple[Doubles, dict[str, float]]:
    """(tokens,) log teacher - log student, 0 on tokens that are not trained; and the metric `teacher_kl`, absent if nothing was scored.

    `advantage`: (transitions,) or (tokens,); a transition with NaN is not scored.
    """
    scored = make_batch(rollouts.trajectories, [np.where(np.isnan(part), np.nan, 1.0) for part in rollouts.split(advantage)])
    gap = np.zeros(int(rollouts.tokens.sum()))
    if not scored.trained_tokens:
        return gap, {}
    of_batch = await session.teacher_logprobs(scored) - scored.rollout_logprobs
    index = {t.completion_id: k for k, t in enumerate(t for trajectory in rollouts.trajectories for t in trajectory.transitions)}
    offsets = rollouts.offsets
    for completion_id, response in scored.by_transition(of_batch).items():
        k = index[completion_id]
        gap[offsets[k] : offsets[k + 1]] = response
    return gap, {"teacher_kl": -float(of_batch[scored.trained].mean())}
