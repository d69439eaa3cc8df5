"""LightningRL: trajectory, credit, advantage, batch, loss settings, and the loop that joins them."""
