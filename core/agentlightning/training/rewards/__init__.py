"""Rewards that come from outside the agent: a function of the recorded rollout, or a judge."""
