"""Who is asked when, and how often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.benchmarks.roster import Contender


@dataclass(frozen=True)
class Plan:
    """What all contenders of a measurement do alike."""

    rounds: int

    requests: int
    """How often a route is asked for in a turn."""

    warm_up: int
    """The same before the first turn: caches of compiled statements are filled, and the interpreter's own."""

    routes: Sequence[str] = ()

    clock: str = "wall"

    def turns(self, contenders: Sequence[Contender]) -> Iterator[tuple[str, Contender]]:
        """Yield whose turn it is, by which route.

        In each round, and for each route in it, all have a turn. The first of them is another one in the next round.
        """
        for number in range(self.rounds):
            start = number % len(contenders)
            for route in self.routes:
                for contender in (*contenders[start:], *contenders[:start]):
                    if route in contender.routes:
                        yield route, contender
