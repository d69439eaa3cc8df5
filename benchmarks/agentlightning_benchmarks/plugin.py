"""Registers the benchmark commands, the benchmarks, and their step signals."""

from agentlightning.contracts.hookspecs import Register, hookimpl


@hookimpl
def register_commands(register: Register) -> None:
    register(
        "demo",
        "agentlightning_benchmarks.demo.command:demo",
        summary="train a small LangChain agent on this machine, in minutes",
        extra="demo",
        needs=("langchain", "langgraph", "langchain_openai", "simpleeval", "torch", "transformers", "matplotlib"),
    )
    register("bench", "agentlightning_benchmarks.bench.command:bench", summary="list benchmarks, or run one")


@hookimpl
def register_benchmarks(register: Register) -> None:
    training = ("torch", "transformers", "matplotlib")
    register(
        "math",
        "agentlightning_benchmarks.math.tasks:BENCHMARK",
        summary="AutoGen: word problems with a calculator",
        extra="bench",
        needs=("autogen_agentchat", "autogen_ext", "simpleeval", *training),
    )
    register(
        "rag",
        "agentlightning_benchmarks.rag.tasks:BENCHMARK",
        summary="OpenAI Agents SDK: multi-hop questions with a search tool",
        extra="bench",
        needs=("agents", "bm25s", *training),
    )
    register(
        "text-to-sql",
        "agentlightning_benchmarks.text_to_sql.tasks:BENCHMARK",
        summary="LangGraph: write, execute, check, rewrite",
        extra="bench",
        needs=("langgraph", "langchain_openai", *training),
    )


@hookimpl
def register_step_signals(register: Register) -> None:
    register(
        "sql_failed",
        "agentlightning_benchmarks.text_to_sql.step_signals:sql_failed",
        summary="text-to-SQL: a query did not execute",
        extra="bench",
        needs=("langchain_core", "langgraph"),
    )
    register(
        "nothing_found",
        "agentlightning_benchmarks.rag.step_signals:nothing_found",
        summary="RAG: a search found no passage",
        extra="bench",
        needs=("agents", "bm25s"),
    )
