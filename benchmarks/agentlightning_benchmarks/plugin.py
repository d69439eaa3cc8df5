"""Commands of the benchmarks."""

from agentlightning.hookspecs import Register, hookimpl


@hookimpl
def register_commands(register: Register) -> None:
    register(
        "demo",
        "agentlightning_benchmarks.demo.command:demo",
        summary="train a small LangChain agent on this machine, in minutes",
        extra="demo",
        needs=("langchain", "langgraph", "langchain_openai", "simpleeval", "torch", "transformers", "matplotlib"),
    )
    register("bench", "agentlightning_benchmarks.bench.command:bench", summary="run a benchmark of the paper: math, rag, text-to-sql")
