"""Rollouts in containers. Core reaches this package through its entry point."""
