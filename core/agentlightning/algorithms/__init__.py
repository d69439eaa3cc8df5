"""Training loops, one algorithm a file."""
