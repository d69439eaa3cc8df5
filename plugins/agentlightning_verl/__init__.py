"""A trainer on verl's workers, which run in their own processes."""
