"""Certificates: a lab CA by `openssl`, as a person would type it, and what nginx takes of a Secret."""

from __future__ import annotations

import functools
import ssl
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from k8snet.controllers.ingress.model import Certificate

__all__ = ["Authority", "self_signed", "unfit"]

CA = "k8snet lab CA"
DEFAULT = "k8snet default certificate"
DAYS = "365"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
Openssl = Callable[..., object]  # runs `openssl` with these words


class Authority:
    """A CA that only this lab trusts."""

    def __init__(self, folder: Path, openssl: Openssl) -> None:
        """Make its key and certificate in *folder*, unless they are there.

        Like: openssl req -x509 -newkey ec ... -subj "/CN=k8snet lab CA" -keyout ca.key -out ca.crt
        """
        self.folder, self._openssl = folder, openssl
        self.file = folder / "ca.crt"
        if not self.file.exists():
            _self_signed(openssl, CA, folder / "ca.key", self.file)

    def issue(self, hosts: Sequence[str], name: str) -> Certificate:
        """Return a new certificate for *hosts*, in files called *name*.

        Like: openssl req -newkey ec ... -addext subjectAltName=DNS:HOST; openssl x509 -req -CA ca.crt ...
        """
        key, request, chain = (self.folder / f"{name}.{ending}" for ending in ("key", "csr", "crt"))
        names = ",".join(f"DNS:{one}" for one in hosts)
        subject = ("-subj", f"/CN={hosts[0][:64]}", "-addext", f"subjectAltName={names}")
        self._openssl("req", *NEW_KEY, *subject, "-keyout", str(key), "-out", str(request))
        self._openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.file), "-CAkey", str(self.folder / "ca.key"),
            "-CAcreateserial", "-days", DAYS, "-copy_extensions", "copy", "-out", str(chain),
        )  # fmt: skip
        return Certificate(name=name, chain=chain.read_text(), key=key.read_text())


def self_signed(folder: Path, openssl: Openssl, name: str) -> Certificate:
    """Return a certificate that nobody trusts: for hosts that have none of their own."""
    key, chain = folder / f"{name}.key", folder / f"{name}.crt"
    _self_signed(openssl, DEFAULT, key, chain)
    return Certificate(name=name, chain=chain.read_text(), key=key.read_text())


def _self_signed(openssl: Openssl, subject: str, key: Path, chain: Path) -> None:
    openssl(
        "req", "-x509", *NEW_KEY, "-days", DAYS, "-subj", f"/CN={subject}", "-keyout", str(key), "-out", str(chain)
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def unfit(chain: str, key: str) -> str:
    """Return why nginx would not take a certificate and its key, both in PEM, or ""."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("tls.crt", "tls.key")]
        for file, text in zip(files, (chain, key), strict=True):
            file.touch(mode=0o600)
            file.write_text(text)
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(files[0], files[1], password="")  # so that none is asked for
        except (ssl.SSLError, ValueError) as error:
            words = {"KEY_VALUES_MISMATCH": "the key is another certificate's"}
            reason = getattr(error, "reason", None)
            return words.get(str(reason), f"tls.crt and tls.key are no certificate and key in PEM ({reason or error})")
    return ""
