"""An engine on vLLM servers: its own supervised ones, or running ones."""
