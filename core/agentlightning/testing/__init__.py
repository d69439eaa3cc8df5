"""Fakes for each contract, and the contract tests that a plugin runs on itself."""
