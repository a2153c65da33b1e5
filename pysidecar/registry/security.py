"""Credentials and TLS, for those registries that have them."""

from __future__ import annotations

import os
import re
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pysidecar.errors import StartError

if TYPE_CHECKING:
    from pysidecar.config.takeover import Credentials, RegistryTls

__all__ = ["authorities", "client_context", "read_credentials"]

_MAX_PASSWORD = 4096  # bytes
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")  # what OpenSSL looks for in a directory


def read_credentials(credentials: Credentials | None) -> tuple[str, str] | None:
    """Name and password. Raises StartError."""
    if credentials is None:
        return None
    path = Path(credentials.password_file)
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise StartError(
                    f"registry.credentials.password_file {path}: others than its owner may read "
                    f"or write it; expected mode 0600"
                )
            password = file.readline(_MAX_PASSWORD).decode().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected UTF-8"
        raise StartError(f"registry.credentials.password_file {path}: {reason}") from None
    if not password:
        raise StartError(f"registry.credentials.password_file {path}: the first line is empty")
    return credentials.username, password


def authorities(tls: RegistryTls) -> bytes:
    """Those that sign the registry's certificate, as PEM, for who takes no context. Raises
    StartError."""
    paths = ssl.get_default_verify_paths()
    try:
        if tls.ca is not None or paths.cafile is not None:
            return Path(tls.ca or str(paths.cafile)).read_bytes()
        found = sorted(Path(paths.capath).iterdir()) if paths.capath is not None else []
        hashed = [each for each in found if _HASHED.fullmatch(each.name)]
        return b"".join(dict.fromkeys(each.read_bytes() for each in hashed))
    except OSError as error:
        raise StartError(f"registry.tls: {error.filename}: {error.strerror}") from None


def client_context(tls: RegistryTls | None) -> ssl.SSLContext | None:
    """For connections to the registry, whose certificate has to be for its address. Raises
    StartError."""
    if tls is None:
        return None
    for key, path in (("ca", tls.ca), ("certificate", tls.certificate), ("key", tls.key)):
        if path is not None and (reason := _unreadable(path)):
            raise StartError(f"registry.tls.{key} {path}: {reason}")
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except OSError as error:  # which ssl.SSLError is, too
        raise StartError(
            f"registry.tls.ca {tls.ca}: expected certificates as PEM: {error.strerror or error}"
        ) from None
    if tls.certificate is not None:
        try:
            # Without a password, rather than to ask for one on the terminal.
            context.load_cert_chain(tls.certificate, tls.key, password="")
        except OSError as error:
            raise StartError(
                f"registry.tls.certificate {tls.certificate} and registry.tls.key {tls.key}: "
                f"expected PEM files that belong together: {error.strerror or error}"
            ) from None
    return context


def _unreadable(path: str | Path) -> str | None:
    try:
        Path(path).open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return None
