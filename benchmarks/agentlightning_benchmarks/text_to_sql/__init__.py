"""Text-to-SQL: a LangGraph agent writes a query, runs it on SQLite, checks the result, and rewrites the query."""
