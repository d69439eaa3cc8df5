"""Runners on a Ray cluster. Core reaches this package through its entry point."""
