"""Servers of our own: they answer with who was asked, and by whom, over TCP, HTTP and UDP.

All run on one thread with one event loop. Each socket is made inside its netns and
stays there, so one process serves any number of them.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from k8snet.errors import InvalidAddress, InvalidInput, PortTaken
from k8snet.linux import address as check

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["Listener", "listen"]

BACKLOG = 1024  # clients that wait for an answer at the same time
PATIENCE_S = 10.0  # seconds that a client may keep silent


@dataclass(kw_only=True, repr=False)
class Listener:
    """A port that is served until stopped, or until the lab closes."""

    name: str  # what it calls itself in its answers
    netns: str
    protocol: str  # "tcp" or "udp"
    address: str
    port: int
    served: list[tuple[str, str]] = field(default_factory=list)  # (client, server) of each request, as seen here
    _sock: socket.socket = field()
    _transport: Any = field(default=None)
    stopped: bool = False

    def __repr__(self) -> str:
        """Return what listens where."""
        return f"<{self.name} on {self.protocol} port {self.port} in netns {self.netns}>"

    def stop(self) -> None:
        """Close the port; a second call does nothing."""
        if self.stopped:
            return
        self.stopped = True
        loop = _loop()
        asyncio.run_coroutine_threadsafe(self._close(), loop).result(5)
        self._sock.close()

    async def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def __enter__(self) -> Listener:
        """Return itself; the end of the block stops it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()


def listen(netns: Netns, port: int, *, protocol: str, address: str, name: str) -> Listener:
    """Serve a port of a netns. See Netns.listen() for arguments and errors."""
    check.check_port(port)
    parsed = check.host_address(address)
    if protocol not in {"tcp", "udp"}:
        raise InvalidInput(f"protocol {protocol!r}: 'tcp' or 'udp'")

    def body() -> socket.socket:
        family = socket.AF_INET if parsed.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        try:
            if protocol == "tcp":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # so that 0.0.0.0 can be taken beside it
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((str(parsed), port))
            if protocol == "tcp":
                sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            raise _refused(error, netns.name, str(parsed), port, protocol) from None
        return sock

    found = Listener(
        name=name, netns=netns.name, protocol=protocol, address=str(parsed), port=port, _sock=netns.inside(body)
    )
    asyncio.run_coroutine_threadsafe(_serve(found), _loop()).result(5)
    return found


def _refused(error: OSError, netns: str, address: str, port: int, protocol: str) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return PortTaken(
            f"{protocol} port {port} of {address} in netns {netns} is taken; `ss -ltunp` there says by whom"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return InvalidAddress(f"netns {netns} does not have the address {address}")
    return error


async def _serve(listener: Listener) -> None:
    loop = asyncio.get_running_loop()
    if listener.protocol == "udp":
        listener._transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(listener), sock=listener._sock)  # noqa: SLF001
        return
    listener._transport = await asyncio.start_server(lambda r, w: _answer(listener, r, w), sock=listener._sock)  # noqa: SLF001


def _joined(address: tuple[Any, ...]) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


async def _answer(listener: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    client, server = (_joined(writer.get_extra_info(key)) for key in ("peername", "sockname"))
    try:
        line = await asyncio.wait_for(reader.readline(), PATIENCE_S)
        if line:
            listener.served.append((client, server))
            writer.write(await _reply(listener, reader, line, client, server))
            await writer.drain()
    except (OSError, TimeoutError, asyncio.LimitOverrunError, ValueError):
        return  # the client is gone, silent, or talks nonsense
    finally:
        writer.close()


async def _reply(listener: Listener, reader: asyncio.StreamReader, line: bytes, client: str, server: str) -> bytes:
    if not line.rstrip().endswith((b"HTTP/1.0", b"HTTP/1.1")):
        return f"{listener.name} at {server} saw {client}\n".encode()
    while (await asyncio.wait_for(reader.readline(), PATIENCE_S)).strip():
        continue  # the request's headers say nothing that we answer to
    body = json.dumps({"name": listener.name, "server": server, "client": client}).encode() + b"\n"
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"X-Seen-Client: {client}\r\nX-Seen-Server: {server}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


class _Datagrams(asyncio.DatagramProtocol):
    """Answer each datagram with one."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:  # noqa: ARG002  # any datagram is a question
        client, server = _joined(addr), _joined(self.transport.get_extra_info("sockname"))
        self.listener.served.append((client, server))
        self.transport.sendto(f"{self.listener.name} at {server} saw {client}\n".encode(), addr)


_lock = threading.Lock()
_running: list[asyncio.AbstractEventLoop] = []


def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all listeners, on a thread that ends with the interpreter."""
    with _lock:
        if not _running:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="k8snet-listeners", daemon=True).start()
            _running.append(loop)
        return _running[0]
