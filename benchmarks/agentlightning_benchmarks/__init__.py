"""Benchmarks: idiomatic agents of several frameworks, their tasks, and the commands that train them."""
