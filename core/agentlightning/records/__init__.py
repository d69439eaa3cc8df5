"""Reads what a run or a store recorded, for `agl show`, `agl compare` and the page: rollouts with their accounts, and evaluations."""
