"""A real nginx in a netns, with a configuration of a few lines."""

from __future__ import annotations

import errno
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from k8snet.errors import InvalidInput, PortTaken, Timeout
from k8snet.linux import address as check
from k8snet.linux import run as _run

if TYPE_CHECKING:
    from k8snet.linux.netns import Netns

__all__ = ["await_nginx", "nginx", "start_nginx"]

# $remote_addr is who nginx believes to be asked by; $server_addr which of its addresses was asked
CONFIGURATION = """\
master_process {master};
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
        {ipv6}
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
    process = start_nginx(netns, port=port, body=body)
    await_nginx(netns, process)
    return process


def start_nginx(
    netns: Netns, *, port: int, body: str | None = None, ipv6: bool = False, alone: bool = False
) -> _run.Process:
    """Start nginx in a netns; see nginx() for the arguments and errors.

    Args:
        ipv6: listen on IPv6, too.
        alone: one process that serves by itself, without a master that would restart it.
    """
    check.check_port(port)
    text = f"{netns.name} says hello" if body is None else body
    if any(sign in text for sign in '"\\$\n'):
        raise InvalidInput(f'body {text!r}: no ", $, backslash or line break')
    if netns.inside(_taken, port):
        raise PortTaken(f"tcp port {port} in netns {netns.name} is taken; `ss -ltnp` there says by whom")
    folder = Path(tempfile.mkdtemp(prefix="nginx-", dir=_run.scratch()))
    file = folder / "nginx.conf"
    more = {"ipv6": f"listen [::]:{port} default_server;" if ipv6 else "", "master": "off" if alone else "on"}
    file.write_text(CONFIGURATION.format(folder=folder, port=port, body=text, **more))
    try:
        process = _run.start(
            ["nginx", "-p", str(folder), "-c", str(file)], fd=netns.fd, netns=netns.name, keep_output=True
        )
    except BaseException:
        shutil.rmtree(folder)
        raise
    process.on_stop.append(lambda: shutil.rmtree(folder, ignore_errors=True))
    return process


def await_nginx(netns: Netns, process: _run.Process, *, timeout_s: float = 5.0) -> None:
    """Wait until an nginx that was started listens; stop it if it does not.

    Raises:
        Timeout: it did not listen in time, or has ended; what it said is in the message.
    """
    listens = Path(process.argv[2], "nginx.pid")  # written once the sockets listen
    try:
        _run.wait_until(
            lambda: listens.exists() or not process.running, what=f"nginx in netns {netns.name}", timeout_s=timeout_s
        )
    except BaseException:
        process.stop()
        raise
    if not process.running:
        said = process.output().strip()
        process.stop()
        raise Timeout(f"nginx in netns {netns.name} ended at once: {said}")


def _taken(port: int) -> bool:
    """Return whether something listens on a TCP port; without a packet, for lo may be down."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
