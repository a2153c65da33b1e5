"""Credentials and TLS, for those registries that have them."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pysidecar.errors import StartError

if TYPE_CHECKING:
    from pysidecar.config.takeover import Credentials, RegistryTls

__all__ = ["client_context", "read_credentials"]

_MAX_PASSWORD = 4096  # bytes


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


def client_context(tls: RegistryTls | None) -> ssl.SSLContext | None:
    """For connections to the registry, whose certificate has to be for its address. Raises
    StartError."""
    if tls is None:
        return None
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        if tls.certificate is not None:
            # Without a password, rather than to ask for one on the terminal.
            context.load_cert_chain(tls.certificate, tls.key, password="")
    except OSError as error:  # which ssl.SSLError is, too
        raise StartError(
            f"registry.tls: expected readable PEM files whose certificate and key belong together: "
            f"{error.strerror or error}"
        ) from None
    return context
