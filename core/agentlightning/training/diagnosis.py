"""A diagnosis: the likeliest reason why a run does not learn. `docs/not-learning.md` explains each cause."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The likeliest reason why a run does not learn."""

    cause: str
    """One of the names in `docs/not-learning.md`."""
    evidence: str
    """The numbers, in a sentence."""
    remedy: str

    @property
    def text(self) -> str:
        """One line for the user."""
        return f"Not learning ({self.cause}): {self.evidence} {self.remedy}"
