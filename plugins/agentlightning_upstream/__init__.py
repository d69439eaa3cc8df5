"""The engine `upstream`: forwards the requests of agents to another OpenAI-compatible server, and records the answers."""
