"""How a contender plays: one process, told on stdin what to do, timing its own work.

    referee                     contender
    (starts it)            ->
                           <-   {"ready": true}
    build 100              ->   makes the bridge and 100 pods
                           <-   {"seconds": 0.21}, and "addresses" if they are its own choice
    build 10 300           ->   (a cluster's) makes 10 nodes and 300 pods, until nginx listens in each
                           <-   {"seconds": 3.4, "addresses": [...], "vantage": a node's netns}
    teardown               ->   removes all it made
                           <-   {"seconds": 0.03}
    (end of file)          ->   exits

Time to start an interpreter and to import is not counted: whoever builds a lab from a
notebook has that behind them. Programs that a contender starts while it works are.
Only the standard library, since Mininet runs with the system's Python.
"""
from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Player", "play"]


class Player(Protocol):
    """One way to build a bridge with pods, or a cluster."""

    @property
    def build(self) -> Callable[..., dict[str, object] | None]:
        """Make as many pods as told, and return what the referee cannot know: see above."""

    def teardown(self) -> None:
        """Remove all that build() made."""


def play(player: Player) -> None:
    """Follow the referee until it has no more to say."""
    _say({"ready": True})
    for line in sys.stdin:
        order, *counts = line.split()
        begun = time.monotonic()
        told = None
        if order == "build":
            told = player.build(*map(int, counts))
        else:
            player.teardown()
        seconds = time.monotonic() - begun
        _say({"seconds": round(seconds, 6), **(told or {})})


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
