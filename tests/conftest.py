"""What holds for every test."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as after `./run test &`, which no Ctrl-C is to reach
    signal.signal(signal.SIGINT, signal.default_int_handler)
