"""The plugin of the built-in parts."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_stores(register: Register) -> None:
    register("http", "agentlightning.stores.http_client:open_http", summary="a store behind `agl serve`: `http://host:port`")
    register("https", "agentlightning.stores.http_client:open_http", summary="the same over TLS")


@hookimpl
def register_runners(register: Register) -> None:
    register(
        "local", "agentlightning.runner.runner:Runner", settings="agentlightning.config.schema:RunnerSettings",
        summary="in the run's process, in worker processes, or where you start `agl runner`",
    )  # fmt: skip


@hookimpl
def register_checks(register: Register) -> None:
    register("gateway", "agentlightning.serving.check:check", summary="starts and answers a request")


@hookimpl
def register_credits(register: Register) -> None:
    register("identical", "agentlightning.rl.credit.identical:identical", summary="every transition gets the full return")
    register("last", "agentlightning.rl.credit.last:last", summary="only the last call gets the return and is trained")
    register(
        "discounted", "agentlightning.rl.credit.discounted:discounted", summary="earlier transitions get less: R_t = r_t + gamma R_(t+1)"
    )
    register(
        "per_step", "agentlightning.rl.credit.per_step:per_step", summary="each transition's own rewards, mixed with the rollout's reward"
    )
    register("learned", "agentlightning.rl.credit.learned:learned", summary="temporal differences with a critic")


@hookimpl
def register_advantages(register: Register) -> None:
    register("grpo", "agentlightning.rl.advantage.grpo:grpo", summary="(r - mean) / deviation of the group")
    register("dr_grpo", "agentlightning.rl.advantage.grpo:dr_grpo", summary="r - mean of the group")
    register("rloo", "agentlightning.rl.advantage.rloo:rloo", summary="r - mean of the others in the group")
    register("opo", "agentlightning.rl.advantage.opo:opo", summary="r - mean of the group weighted by length")
    register("maxrl", "agentlightning.rl.advantage.maxrl:maxrl", summary="(r - mean) / mean of the group")
    register("reinforce", "agentlightning.rl.advantage.reinforce:reinforce", summary="r - a constant")
    register(
        "reinforce_pp",
        "agentlightning.rl.advantage.reinforce_pp:reinforce_pp",
        summary="REINFORCE++: normalised over the tokens of the step",
    )
    register(
        "reinforce_pp_baseline",
        "agentlightning.rl.advantage.reinforce_pp:reinforce_pp_baseline",
        summary="r - mean of the group, normalised over the tokens of the step",
    )
    register("gigpo", "agentlightning.rl.advantage.gigpo:gigpo", summary="GRPO within groups, plus among transitions from the same state")
    register("none", "agentlightning.rl.advantage.none:none", summary="0, for training on a teacher alone; needs no reward")
    register("gae", "agentlightning.rl.advantage.gae:gae", summary="PPO with a critic, over tokens or transitions")


@hookimpl
def register_losses(register: Register) -> None:
    register("ppo_clip", "agentlightning.rl.loss:PPOClip", summary="PPO's clipped ratio, with clip-higher and dual clip")
    register("gspo", "agentlightning.rl.loss:GSPO", summary="clipped ratio of a reply or attempt")
    register("cispo", "agentlightning.rl.loss:CISPO", summary="clipped importance weight on the policy gradient")


@hookimpl
def register_corrections(register: Register) -> None:
    register(
        "tis", "agentlightning.rl.correction.tis:TruncatedImportanceSampling", summary="truncated importance sampling: min(ratio, clip)"
    )
    register("icepop", "agentlightning.rl.correction.icepop:IcePop", summary="masks tokens with a ratio outside a band")
    register(
        "sequence_masking",
        "agentlightning.rl.correction.sequence_masking:SequenceMasking",
        summary="masks replies or attempts with a ratio outside a band",
    )
    register("none", "agentlightning.rl.correction.none:NoCorrection", summary="weight 1, also with 16-bit weights")


@hookimpl
def register_step_signals(register: Register) -> None:
    register("tool_failed", "agentlightning.rl.trajectory.step_rewards.tools:tool_failed", summary="a tool ended with an error")
    register(
        "tool_empty",
        "agentlightning.rl.trajectory.step_rewards.tools:tool_empty",
        summary="a tool returned empty text, an empty list, or null",
    )
    register("truncated", "agentlightning.rl.trajectory.step_rewards.truncated:truncated", summary="a token limit ended a reply")


@hookimpl
def register_algorithms(register: Register) -> None:
    register("lightning", "agentlightning.algorithms.lightning:LightningRL", summary="credit, then advantage, then a single-turn algorithm")
    register("sft", "agentlightning.algorithms.sft:SFT", summary="supervised fine-tuning on demonstrations, in rollouts of your agent")
    register("rft", "agentlightning.algorithms.rft:RFT", summary="rejection-sampled fine-tuning on the policy's own good rollouts")
    register("dpo", "agentlightning.algorithms.dpo:DPO", summary="direct preference optimisation on the rollouts of a group")


@hookimpl
def register_filters(register: Register) -> None:
    register("nonzero_variance", "agentlightning.rl.batch.filters:nonzero_variance", summary="keeps groups with differing rewards")
    register("difficulty", "agentlightning.rl.batch.filters:difficulty", summary="keeps groups with a mean reward between two bounds")


@hookimpl
def register_samplers(register: Register) -> None:
    register("curriculum", "agentlightning.config.curriculum:Curriculum", summary="finds tasks whose rewards differ, and stays with them")
    register("epochs", "agentlightning.config.samplers:Epochs", summary="a new random order each epoch, without replacement")
    register("in_order", "agentlightning.config.samplers:InOrder", summary="the order of the file, repeated")


@hookimpl
def register_trackers(register: Register) -> None:
    register(
        "jsonl", "agentlightning.training.metrics:JSONLines", settings="agentlightning.contracts.tracker:TrackerSettings",
        summary="`metrics.jsonl` in the run folder, which every run writes",
    )  # fmt: skip
