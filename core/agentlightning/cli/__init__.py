"""`agl`, the command line."""
