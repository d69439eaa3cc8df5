"""The samplers of a model that takes other rope factors for longer sequences, one for each range of lengths. Other models have one.

A sequence keeps its factors from the prompt to the end, because its keys have them built in. So a reply that begins below such a length
ends there.
"""

from __future__ import annotations

from agentlightning_torch.lengths import length_of, regime
from agentlightning_torch.sampler import Counts, Reply, SampledToken, Sampler
from agentlightning_torch.slots import KVShape
from agentlightning_torch.weights import Weights


class Samplers:
    """What a `Sampler` does, for sequences of all lengths."""

    def __init__(self, weights: Weights, shape: KVShape, switched: tuple[int, ...], *, max_batch: int, memory: int) -> None:
        share = memory // (len(switched) + 1)
        self._switched = switched
        self._samplers = [
            Sampler(weights, shape, max_batch=max_batch, memory=share, length=length_of(number, switched))
            for number in range(len(switched) + 1)
        ]
        self._ended: list[Reply] = []
        """Replies with a last token that `step` has not returned yet."""

    def room(self, prompt: int) -> int | None:
        """The tokens that a reply to a prompt of this length may have before the factors change; None: any number."""
        beyond = [switch for switch in self._switched if switch > prompt]
        return beyond[0] - prompt if beyond else None

    def _of(self, reply: Reply) -> Sampler:
        return self._samplers[regime(reply.end, self._switched)]

    @property
    def live(self) -> list[Reply]:
        """The replies that have a row."""
        return [reply for sampler in self._samplers for reply in sampler.live]

    @property
    def waiting(self) -> list[Reply]:
        """The replies that wait for a row."""
        return [reply for sampler in self._samplers for reply in sampler.waiting]

    @property
    def in_flight(self) -> bool:
        """See `Sampler.in_flight`."""
        return any(sampler.in_flight for sampler in self._samplers)

    @property
    def bytes(self) -> int:
        """Memory of keys and values."""
        return sum(sampler.bytes for sampler in self._samplers)

    @property
    def counts(self) -> Counts:
        """The sums over all samplers."""
        counts = [sampler.counts for sampler in self._samplers]
        return Counts(*(sum(getattr(count, name) for count in counts) for name in ("prefilled", "copied", "decoded", "steps")))

    def add(self, reply: Reply) -> None:
        self._of(reply).add(reply)

    def drop(self, reply: Reply) -> None:
        self._of(reply).drop(reply)

    def step(self, *, admit: bool) -> list[SampledToken]:
        """See `Sampler.step`."""
        events: list[SampledToken] = []
        for sampler in self._samplers:
            if sampler.in_flight or (sampler.waiting and admit):
                events += sampler.step(admit=admit)
                self._ended = [event.reply for event in events if event.finish]
        self._ended = []
        return events

    def fail(self) -> list[Reply]:
        """See `Sampler.fail`."""
        lost = [*self._ended, *(reply for sampler in self._samplers for reply in sampler.fail())]
        self._ended = []
        return lost

    def forget(self) -> None:
        """See `Sampler.forget`."""
        for sampler in self._samplers:
            sampler.forget()
