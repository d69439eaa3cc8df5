"""`agl bench`: trains a benchmark's agent, evaluates it on test tasks before, during, and after, and reports whether the reward rises."""
