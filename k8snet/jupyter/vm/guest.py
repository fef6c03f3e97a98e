"""Process 1 of the guest, and the many byte streams that travel over one between it and the host.

Both ends are a Mux. Its frames: channel, kind, length, then so many bytes. Channel 0 carries
JSON (TELL): the host's plan; the guest's "ready" and "exit".

Only the standard library is here, and little of it: the guest starts this file by its path.
"""
from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["ERRORS", "INPUT", "OUTPUT", "Mux", "Stream", "main"]

HEADER = struct.Struct("!IBI")
OPEN, DATA, END, STOP, TELL = range(5)
INPUT, OUTPUT, ERRORS = 1, 2, 3  # channels of the command's own streams; sockets come after
MOST = 1 << 20  # bytes that may wait for a slow reader before the writer is no longer read
CHUNK = 1 << 15
PIPE_BUF = 4096  # so much fits a pipe or terminal that poll() calls writable, without waiting

MARK = Path("/run/k8snet-sandbox")  # says that network namespaces may be made here (sandbox.MARK)
USER = "1000"  # as in a sandbox: not root, with every capability but those that lead back to it
KEPT = "+all,-setuid,-setgid"
AS_USER = (
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-setuid,-setgid",
    f"--inh-caps={KEPT}", f"--ambient-caps={KEPT}", "--securebits=+no_setuid_fixup", "--",
)  # fmt: skip
OPEN_FILES = 1 << 20  # as in a sandbox (sandbox.OPEN_FILES)
RETRY_S = 0.05  # between two attempts to reach a port that ipykernel has not opened yet


class Stream:
    """One channel's end here: what is read goes to the other side, what comes from there is written."""

    def __init__(self, source: int = -1, sink: int = -1, sock: socket.socket | None = None) -> None:
        """Take open files (-1: none), or a connected socket for both directions."""
        self.sock = sock
        self.todo = bytearray()  # what the sink has not taken yet
        self.ended = False  # nothing more comes from the other side
        self.waiting = not sock and source < 0 and sink < 0  # for a socket
        self.source, self.sink = (sock.fileno(), sock.fileno()) if sock else (source, sink)

    def write(self) -> None:
        """Write what the sink takes now; at the end, close it."""
        if self.todo and self.sink >= 0:
            with contextlib.suppress(BlockingIOError):
                count = os.write(self.sink, bytes(self.todo[: CHUNK if self.sock else PIPE_BUF]))
                del self.todo[:count]
        if self.ended and not self.todo and self.sink >= 0:
            self.close_sink()

    def close_sink(self) -> None:
        """Tell the reader that nothing more comes."""
        if self.sock:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
        elif self.sink > 2:  # our own standard streams stay
            os.close(self.sink)
        self.sink = -1
        self.todo.clear()

    def close_source(self) -> None:
        """Read no more; a program that writes there gets SIGPIPE."""
        if not self.sock and self.source > 2:
            os.close(self.source)
        self.source = -1


class Mux:
    """Many byte streams over one, both ways, on one thread, none of them read faster than it is taken."""

    def __init__(self, fd: int, *, told: Callable[[dict[str, Any]], None]) -> None:
        """Speak over *fd*, which does not block; *told* hears what the other end tells."""
        self.fd, self.told = fd, told
        self.opened: Callable[[int, int], None] = lambda _channel, _port: None
        self.streams: dict[int, Stream] = {}
        self.watched: dict[int, Callable[[], None]] = {}  # other files, and what to do when one can be read
        self.inbox, self.outbox = bytearray(), bytearray()

    def send(self, kind: int, channel: int, data: bytes = b"") -> None:
        """Put a frame on its way."""
        self.outbox += HEADER.pack(channel, kind, len(data)) + data

    def tell(self, **what: object) -> None:
        """Tell the other end something."""
        self.send(TELL, 0, json.dumps(what).encode())

    def step(self, timeout_s: float | None = None) -> None:
        """Wait until something can be read or written, and do that.

        Raises:
            EOFError: the other end is gone.
        """
        poller = select.poll()
        for fd, events in self._wanted().items():
            poller.register(fd, events)
        ready = dict(poller.poll(None if timeout_s is None else timeout_s * 1000))
        if events := ready.get(self.fd, 0):
            self._flush()
            if events & ~select.POLLOUT:
                self._receive()
        for channel, stream in list(self.streams.items()):
            if ready.get(stream.sink, 0) & ~select.POLLIN:
                self._write(channel, stream)
            if ready.get(stream.source, 0) & ~select.POLLOUT:
                self.pump(channel, stream)
            self._drop_if_done(channel, stream)
        for fd in [fd for fd in self.watched if fd in ready]:
            self.watched[fd]()

    def _wanted(self) -> dict[int, int]:
        wanted = dict.fromkeys(self.watched, select.POLLIN)

        def want(fd: int, events: int) -> None:
            if fd >= 0 and events:
                wanted[fd] = wanted.get(fd, 0) | events

        behind = any(len(stream.todo) > MOST for stream in self.streams.values())
        want(self.fd, (0 if behind else select.POLLIN) | (select.POLLOUT if self.outbox else 0))
        for stream in self.streams.values():
            want(stream.source, select.POLLIN if len(self.outbox) < MOST else 0)
            want(stream.sink, select.POLLOUT if stream.todo else 0)
        return wanted

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self.outbox:
                count = os.write(self.fd, bytes(self.outbox[:CHUNK]))
                del self.outbox[:count]

    def _receive(self) -> None:
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return
        if not data:
            raise EOFError
        self.inbox += data
        while len(self.inbox) >= HEADER.size:
            channel, kind, length = HEADER.unpack_from(self.inbox)
            if len(self.inbox) < HEADER.size + length:
                return
            payload = bytes(self.inbox[HEADER.size : HEADER.size + length])
            del self.inbox[: HEADER.size + length]
            self._take(kind, channel, payload)

    def _take(self, kind: int, channel: int, data: bytes) -> None:
        if kind == TELL:
            self.told(json.loads(data))
        elif kind == OPEN:
            self.opened(channel, int(data))
        elif stream := self.streams.get(channel):
            if kind == STOP:
                stream.close_source()
            else:
                stream.todo += data
                stream.ended = kind == END
                if stream.ended and not stream.todo:
                    stream.write()
            self._drop_if_done(channel, stream)

    def _write(self, channel: int, stream: Stream) -> None:
        try:
            stream.write()
        except OSError:  # the reader is gone
            stream.close_sink()
            self.send(STOP, channel)

    def pump(self, channel: int, stream: Stream) -> bool:
        """Read once from a source; tell whether there may be more now."""
        try:
            data = os.read(stream.source, CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # reset by its peer, or a terminal whose program has ended
            data = b""
        if not data:
            stream.close_source()
        self.send(DATA if data else END, channel, data)
        return bool(data)

    def _drop_if_done(self, channel: int, stream: Stream) -> None:
        if stream.source < 0 and stream.sink < 0 and not stream.waiting:
            if stream.sock:
                stream.sock.close()
            self.streams.pop(channel, None)


class Guest:
    """Starts the command of the host's plan, and connects to its ports as the host's clients do to ours."""

    def __init__(self, fd: int) -> None:
        """Speak to the host over *fd*."""
        self.mux = Mux(fd, told=self.told)
        self.mux.opened = self.opened
        self.waiting: dict[int, int] = {}  # channels whose port does not listen yet
        self.child: subprocess.Popen[bytes] | None = None
        self.terminal = -1  # the command's, if it has one
        children, wakeup = os.pipe()
        os.set_blocking(children, False)
        os.set_blocking(wakeup, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        self.children = children
        self.mux.watched[children] = self.reap

    def told(self, what: dict[str, Any]) -> None:
        """Do what the host says."""
        if "plan" in what:
            self.start(what["plan"])
        if "signal" in what and self.child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.child.pid, what["signal"])
        if "size" in what and self.terminal >= 0:
            import termios

            termios.tcsetwinsize(self.terminal, what["size"])

    def start(self, plan: dict[str, Any]) -> None:
        """Start the command: with the host's time, environment and folder."""
        time.clock_settime(time.CLOCK_REALTIME, plan["time"])
        for name, text in plan["files"].items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text)
        words = [*AS_USER, *plan["command"]]
        options = {"cwd": plan["folder"] if Path(plan["folder"]).is_dir() else "/", "env": plan["environment"]}
        if plan["size"]:
            self.child = self._start_in_terminal(words, options, plan["size"])
        else:
            self.child = self._start_with_pipes(words, options)

    def _start_in_terminal(
        self, words: list[str], options: dict[str, Any], size: list[int]
    ) -> subprocess.Popen[bytes]:
        import termios  # a kernelspec has no terminal

        self.terminal, slave = os.openpty()
        os.fchown(slave, int(USER), int(USER))
        termios.tcsetwinsize(slave, (size[0], size[1]))
        child = subprocess.Popen(words, preexec_fn=lambda: os.login_tty(slave), **options)  # one thread
        os.close(slave)
        os.set_blocking(self.terminal, False)
        self.mux.streams[INPUT] = Stream(sink=os.dup(self.terminal))
        self.mux.streams[OUTPUT] = Stream(source=os.dup(self.terminal))
        return child

    def _start_with_pipes(self, words: list[str], options: dict[str, Any]) -> subprocess.Popen[bytes]:
        (stdin, ours_in), (ours_out, stdout), (ours_err, stderr) = os.pipe(), os.pipe(), os.pipe()
        child = subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True, **options)
        for fd in (stdin, stdout, stderr):
            os.close(fd)
        for fd in (ours_in, ours_out, ours_err):
            os.set_blocking(fd, False)
        self.mux.streams[INPUT] = Stream(sink=ours_in)
        self.mux.streams[OUTPUT], self.mux.streams[ERRORS] = Stream(source=ours_out), Stream(source=ours_err)
        return child

    def opened(self, channel: int, port: int) -> None:
        """Connect to a port of the command's, now or when it listens."""
        self.mux.streams[channel] = Stream()
        self.waiting[channel] = port

    def connect(self) -> None:
        """Try the ports that did not listen yet."""
        for channel, port in list(self.waiting.items()):
            sock = socket.socket()
            try:
                sock.connect(("127.0.0.1", port))
            except ConnectionRefusedError:
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            waited = self.mux.streams[channel]
            stream = self.mux.streams[channel] = Stream(sock=sock)
            stream.todo, stream.ended = waited.todo, waited.ended
            stream.write()
            del self.waiting[channel]

    def reap(self) -> None:
        """Collect every process that ended; when it is the command, tell how, after all that it wrote."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.children, CHUNK)
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.child and pid == self.child.pid:
                for channel, stream in self.mux.streams.items():
                    while stream.source >= 0 and self.mux.pump(channel, stream):
                        pass
                os.sync()
                self.mux.tell(exit=os.waitstatus_to_exitcode(status))


def main() -> None:
    """Serve the host until it is gone; process 1 never returns."""
    MARK.touch()
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    port = next(Path("/dev").glob("vport*p1"))
    guest = Guest(os.open(port, os.O_RDWR | os.O_NONBLOCK))
    guest.mux.tell(ready=True)
    with contextlib.suppress(EOFError, OSError):
        while True:
            guest.connect()
            guest.mux.step(RETRY_S if guest.waiting else None)
    Path("/proc/sysrq-trigger").write_text("b")  # the host is gone: QEMU ends at a reboot


if __name__ == "__main__":
    main()
