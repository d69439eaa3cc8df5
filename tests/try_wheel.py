"""Run by `make wheel` with the wheel alone: imports what is light, and reads every data file."""

from __future__ import annotations

from pathlib import Path

import agentlightning as agl
from agentlightning.cli.init import project_files
from agentlightning.registry.registry import registry
from agentlightning_benchmarks.rag.questions import one_hop, two_hops
from agentlightning_benchmarks.rag.world import read_world
from agentlightning_benchmarks.text_to_sql.domains import vocabulary
from agentlightning_benchmarks.text_to_sql.forms import read_forms

assert "site-packages" in Path(agl.__file__).parts, f"{agl.__file__} is not the wheel's"
assert registry().broken == {}, registry().broken
assert next(one_hop("train")), "no question"
assert next(two_hops("test")), "no question"
assert read_world().keys() == vocabulary().keys()
assert read_forms().forms
assert "agent.py" in project_files("langgraph"), "the projects of agl init are missing"
presets = Path(agl.__file__).parents[1] / "agentlightning_benchmarks"
assert len(list(presets.glob("*/*.toml"))) >= 6, "presets are missing"
print(f"agentlightning from {Path(agl.__file__).parent}: the wheel works")
