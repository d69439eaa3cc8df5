"""The demo: a LangChain agent learns to answer word problems with a calculator."""
