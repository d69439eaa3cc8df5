"""Agents in verl's own trainer: `python -m verl.trainer.main_ppo` trains your existing agents, with these two lines in its command.

    actor_rollout_ref.rollout.agent.agent_loop_manager_class=agentlightning_verl.agent_loop.LightningAgentLoopManager
    actor_rollout_ref.rollout.agent.agent_loop_config_path=agent.toml

`agent.toml` has the fields of `AgentConfig`. Each row of verl's data is a task, and the agent gets its fields. The agent's model calls go
through our gateway to verl's servers, and our store records every token. verl trains on the root-to-leaf rows of each attempt; advantages
are verl's. Import this package in verl's environment only. It shares nothing with the trainer `verl`.
"""

from agentlightning_verl.agent_loop.config import AgentConfig, read_config
from agentlightning_verl.agent_loop.manager import LightningAgentLoopManager

__all__ = ["AgentConfig", "LightningAgentLoopManager", "read_config"]
