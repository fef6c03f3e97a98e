"""Calls by the thousand: a server of one thread, and a client that opens many connections at a time.

    python tests/calls.py serve PORT ADDRESS...     answers with the address that was asked
    python tests/calls.py call ADDRESS PORT COUNT   so many connections, 64 at a time; prints who answered how often
    python tests/calls.py keep ADDRESS PORT         four at a time until SIGTERM; prints the same

Each is a process in a netns. What it prints is one line of JSON: names to numbers; a name with a blank is an error.
"""

from __future__ import annotations

import errno
import json
import select
import signal
import socket
import sys
import time
from collections import Counter

QUESTION = b"GET / HTTP/1.0\r\n\r\n"
PATIENCE_S = 20.0  # seconds; a SYN that is lost comes again after 1, 3 and 7


def serve(port: int, addresses: list[str]) -> None:
    """Answer on every address with its name, and end the connection."""
    poll, listening, waiting = select.epoll(), {}, {}
    for address in addresses:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(1024)
        poll.register(sock, select.EPOLLIN)
        listening[sock.fileno()] = sock
    while True:
        for fd, _ in poll.poll():
            if fd in listening:
                sock, _ = listening[fd].accept()
                waiting[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
            else:
                sock = waiting.pop(fd)
                poll.unregister(fd)
                if sock.recv(4096):
                    sock.sendall(f"HTTP/1.0 200 OK\r\n\r\n{sock.getsockname()[0]}\n".encode())
                sock.close()


class Client:
    """Opens connections to one address, and counts who answers."""

    def __init__(self, address: str, port: int) -> None:
        self.target, self.found, self.open, self.poll = (address, port), Counter(), {}, select.epoll()
        self.stopped = False

    def call(self, count: int, *, at_once: int) -> None:
        """Open *count* connections, or until stopped; those that are open then come to their end."""
        while self.open or (count and not self.stopped):
            while count and not self.stopped and len(self.open) < at_once:
                self._start()
                count -= 1
            for fd, _ in self.poll.poll(0.1):
                self._go_on(fd)
            for fd, (_, begun, _) in list(self.open.items()):
                if time.monotonic() - begun > PATIENCE_S:
                    self._end(fd, "no answer")

    def _start(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        self.open[sock.fileno()] = (sock, time.monotonic(), bytearray())
        code = sock.connect_ex(self.target)
        if code not in (0, errno.EINPROGRESS):
            self._end(sock.fileno(), f"error {errno.errorcode[code]}")
        else:
            self.poll.register(sock, select.EPOLLOUT)

    def _go_on(self, fd: int) -> None:
        sock, _, data = self.open[fd]
        try:
            if not data:
                sock.send(QUESTION)
                self.poll.modify(fd, select.EPOLLIN)
                data += b" "  # asked
                return
            more = sock.recv(4096)
        except OSError as error:
            self._end(fd, f"error {errno.errorcode[error.errno or 0]}")
            return
        data += more
        if not more:
            self._end(fd, name_in(bytes(data)))

    def _end(self, fd: int, what: str) -> None:
        sock, _, _ = self.open.pop(fd)
        sock.close()
        self.found[what] += 1


def name_in(answer: bytes) -> str:
    """Return who an answer is from: nginx and our servers name themselves in their pages."""
    page = answer.partition(b"\r\n\r\n")[2].decode().strip()
    if page.startswith("{"):
        return str(json.loads(page)["name"])
    return page.split()[0] if page else "no page"


def main(words: list[str]) -> None:
    """Do what the command line says."""
    if words[0] == "serve":
        serve(int(words[1]), words[2:])
        return
    client = Client(words[1], int(words[2]))
    if words[0] == "call":
        client.call(int(words[3]), at_once=64)
    else:
        signal.signal(signal.SIGTERM, lambda *_: setattr(client, "stopped", True))
        client.call(-1, at_once=4)
    print(json.dumps(client.found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
