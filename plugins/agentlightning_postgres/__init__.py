"""Registers the stores `postgresql` and `postgres`: a database that several machines write."""
