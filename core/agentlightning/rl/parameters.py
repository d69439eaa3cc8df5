"""Types of the parameters that several credits and advantages share. Their descriptions are the meanings in `docs/settings.md`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from agentlightning.settings import MAX

Gamma = Annotated[float, Meta(ge=0, le=1, description="discount of later rewards, for each step")]
Lambda = Annotated[
    float,
    Meta(ge=0, le=1, description="1 uses the rewards alone; lower values rely more on the critic: less noise, more bias"),
]
Std = Annotated[bool, Meta(description="whether to divide by the deviation")]
Ddof = Annotated[Literal[0, 1], Meta(description="1 for the deviation of a sample, 0 for that of a population")]
Epsilon = Annotated[float, Meta(ge=0, le=MAX, description="added to the deviation before the division")]
Tolerance = Annotated[float, Meta(ge=0, le=MAX, description="rewards that differ by no more than this count as equal")]
