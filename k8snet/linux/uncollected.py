"""A pause for Python's garbage collector, which walks over all objects there are each time that many new ones are made.

Rules of packets are many small objects, none of them garbage: with 10,000 Services half of the time went there.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["uncollected"]


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the collector rest in this block, or as a decorator; it goes on afterwards if it was on before."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
