"""The engine `upstream`: forwards agents' requests to another OpenAI-compatible server, and records the answers."""
