"""An engine and a trainer on PyTorch and transformers. In one process, they share one copy of the weights."""
