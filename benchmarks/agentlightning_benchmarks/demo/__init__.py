"""The demo: a LangChain agent that answers word problems with a calculator, and learns to."""
