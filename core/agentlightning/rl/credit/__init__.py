"""Credit: how much of an attempt's return each of its transitions earned; one function a file.

Each takes `RolloutArrays` and returns a float64 array (transitions,): NaN throughout an unscored rollout, and NaN at a transition that
earns no credit and is not trained. R is the reward of the rollout, t counts the calls of the attempt, and r_t are the rewards of call
t's own spans, each counted once. The choices of one call (`n > 1`) are siblings: a choice earns its own rewards and everything after the
call, and earlier calls earn the rewards of all choices."""
