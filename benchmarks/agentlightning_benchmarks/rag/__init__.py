"""Multi-hop questions over a corpus. An OpenAI Agents SDK agent learns to search for the answers."""
