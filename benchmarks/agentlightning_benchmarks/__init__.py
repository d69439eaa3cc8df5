"""Benchmarks: agents as users of a framework write them, their tasks, and the commands that train them."""
