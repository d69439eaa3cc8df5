"""What drives a training loop besides LightningRL (`rl/lightning.py`), one algorithm in a file."""
