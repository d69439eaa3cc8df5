"""The embedded store: one SQLite file, used by several processes at once, durable before it acknowledges."""
