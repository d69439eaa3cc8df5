"""Engine and trainer on PyTorch and transformers; in one process they share one copy of the weights."""
