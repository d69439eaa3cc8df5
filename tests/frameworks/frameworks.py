"""The frameworks whose programs are run, and what each must record. Environments and tests read this table."""

from __future__ import annotations

from dataclasses import dataclass

NESTED = """
agent writer
  call
  tool double
  call
  tool ask_critic
    agent critic
      call
      tool triple
      call
  call
""".strip()
"""An agent with a tool, and a tool that asks another agent with a tool of its own."""


@dataclass(frozen=True, slots=True)
class Framework:
    """One framework."""

    name: str
    """Of its preset, its extra and its environment."""
    title: str
    packages: tuple[str, ...]
    """Distributions whose versions the table names: the framework, and its instrumentation if that is another one."""
    tree: str = NESTED
    streams: bool = True
    install: tuple[str, ...] = ()
    """What its program needs besides the extra."""


FRAMEWORKS = (
    Framework("agent-framework", "Microsoft Agent Framework", ("agent-framework-core",), install=("agent-framework-openai",)),
    Framework(
        "agno",
        "agno",
        ("agno", "openinference-instrumentation-agno"),
        tree="""
agent writer
  call
  tool ask_critic
    agent critic
      call
      tool triple
      call
  call
  tool double
  call
""".strip(),
        install=("openai",),
    ),
    Framework(
        "crewai",
        "CrewAI",
        ("crewai", "openinference-instrumentation-crewai"),
        tree="""
agent writer
  call
  tool double
  call
agent critic
  call
  tool triple
  call
""".strip(),
    ),
    Framework(
        "dspy",
        "DSPy",
        ("dspy", "openinference-instrumentation-dspy"),
        tree="""
agent Writer
  call
  tool double
  call
  tool ask_critic
    agent Critic
      call
      tool triple
      call
      tool finish
      call
  call
  tool finish
  call
""".strip(),
        streams=False,
    ),
    Framework("google-adk", "Google ADK", ("google-adk",), tree=NESTED.replace("ask_critic", "critic"), install=("litellm",)),
    Framework(
        "llama-index",
        "LlamaIndex",
        ("llama-index-core", "openinference-instrumentation-llama-index"),
        install=("llama-index-llms-openai-like",),
    ),
    Framework("pydantic-ai", "Pydantic AI", ("pydantic-ai-slim",)),
    Framework(
        "smolagents",
        "smolagents",
        ("smolagents", "openinference-instrumentation-smolagents"),
        tree="""
agent writer
  call
  tool double
  call
  agent critic
    call
    tool triple
    call
    tool final_answer
  call
  tool final_answer
""".strip(),
    ),
    Framework("strands", "Strands Agents", ("strands-agents",)),
)
