"""Multi-hop questions over a corpus: an agent of the OpenAI Agents SDK that searches, and learns to."""
