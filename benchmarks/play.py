"""How a contender plays: one process, told on stdin what to do, timing its own work.

    referee                     contender
    (starts it)            ->
                           <-   {"ready": true}
    build 100              ->   makes the bridge and 100 pods
                           <-   {"seconds": 0.21}, and "addresses" if they are its own choice
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
from typing import Protocol

__all__ = ["Player", "play"]


class Player(Protocol):
    """One way to build a bridge with pods."""

    def build(self, pods: int) -> list[str] | None:
        """Make the bridge and *pods* pods; return their addresses if not as planned."""

    def teardown(self) -> None:
        """Remove all that build() made."""


def play(player: Player) -> None:
    """Follow the referee until it has no more to say."""
    _say({"ready": True})
    for line in sys.stdin:
        order, _, count = line.strip().partition(" ")
        begun = time.monotonic()
        addresses = None
        if order == "build":
            addresses = player.build(int(count))
        else:
            player.teardown()
        seconds = time.monotonic() - begun
        _say({"seconds": round(seconds, 6), "addresses": addresses})


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
