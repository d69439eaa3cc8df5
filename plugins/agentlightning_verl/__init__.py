"""A trainer on verl's workers, which run in processes of their own."""
