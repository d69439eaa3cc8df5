"""`agl bench`: trains the agent of a benchmark, measures it on the test tasks before, during and after, and says whether it rose."""
