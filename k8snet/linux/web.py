"""A real nginx in a netns, with a configuration of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.errors import InvalidInput, PortTaken, Timeout
from k8snet.linux import address as check
from k8snet.linux import run as _run
from k8snet.linux.sockets import sockets

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["nginx"]

# $remote_addr is who nginx believes to be asked by; $server_addr which of its addresses was asked
CONFIGURATION = """\
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen {port} default_server;
        add_header X-Seen-Client $remote_addr:$remote_port always;
        add_header X-Seen-Server $server_addr:$server_port always;
        location / {{
            default_type text/plain;
            return 200 "{body}\\n";
        }}
    }}
}}
"""


def nginx(netns: Netns, *, port: int = 80, body: str | None = None) -> _run.Process:
    """Start nginx in a netns, and wait until it listens.

    Args:
        body: what every page says; None is "NAME says hello".

    Raises:
        PortTaken: a socket listens on the port already.
        InvalidInput: no such port, or a body that nginx's configuration cannot hold.
        ProgramMissing: nginx is not installed.
        Timeout: it did not listen within 5 s; what it said is in the message.
    """
    check.check_port(port)
    text = f"{netns.name} says hello" if body is None else body
    if any(sign in text for sign in '"\\$\n'):
        raise InvalidInput(f'body {text!r}: no ", $, backslash or line break')
    if _answers(netns, port):
        raise PortTaken(f"tcp port {port} in netns {netns.name} is taken; `ss -ltnp` there says by whom")
    folder = Path(tempfile.mkdtemp(prefix="nginx-", dir=_run.scratch()))
    file = folder / "nginx.conf"
    file.write_text(CONFIGURATION.format(folder=folder, port=port, body=text))
    try:
        process = _run.start(
            ["nginx", "-p", str(folder), "-c", str(file)], fd=netns.fd, netns=netns.name, keep_output=True
        )
    except BaseException:
        shutil.rmtree(folder)
        raise
    process.on_stop.append(lambda: shutil.rmtree(folder, ignore_errors=True))
    try:
        _run.wait_until(lambda: not process.running or _answers(netns, port), what=f"nginx in netns {netns.name}")
    except BaseException:
        process.stop()
        raise
    if not process.running:
        said = process.output().strip()
        process.stop()
        raise Timeout(f"nginx in netns {netns.name} ended at once: {said}")
    return process


def _answers(netns: Netns, port: int) -> bool:
    """Return whether something listens on a TCP port; without a packet, for lo may be down."""
    return any((found.protocol, found.port) == ("tcp", port) for found in sockets(netns))
