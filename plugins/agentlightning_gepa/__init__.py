"""Prompt optimisation with GEPA (arXiv 2507.19457): reflective proposals, kept along a Pareto front of tasks. `algorithm = "gepa"`."""
