"""Files with passwords and certificates."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pysidecar.config import RegistryEntry
from pysidecar.errors import StartError
from pysidecar.registry import make_registry
from pysidecar.registry.security import authorities, client_context, read_credentials
from tests.registry.servers import make_certificate

both = pytest.mark.parametrize("kind", ["zookeeper", "etcd"])


def entry(kind: str, **more: dict[str, str]) -> RegistryEntry:
    return RegistryEntry.model_validate({"type": kind, "address": "127.0.0.1:1", **more})


@both
@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        (b"secret\n", 0o640, "others than its owner may read or write it"),
        (b"secret\n", 0o602, "others than its owner may read or write it"),
        (b"\nsecret", 0o600, "the first line is empty"),
        (b"\xff\n", 0o600, "expected UTF-8"),
        (None, 0, "No such file or directory"),
    ],
)
def test_a_password_that_cannot_be_used_is_named(
    tmp_path: Path, kind: str, content: bytes | None, mode: int, problem: str
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    credentials = {"username": "name", "password_file": str(path)}
    with pytest.raises(StartError, match=problem) as raised:
        make_registry(entry(kind, credentials=credentials))
    assert str(path) in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_password_is_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(b" se:cret \r\nmore\n")
    path.chmod(0o600)
    found = entry("etcd", credentials={"username": "name", "password_file": str(path)})
    assert read_credentials(found.credentials) == ("name", " se:cret ")


@both
def test_certificates_that_cannot_be_used_are_an_error_at_the_start(
    tmp_path: Path, kind: str
) -> None:
    certificate, key = make_certificate(tmp_path)
    (tmp_path / "other").mkdir()
    _, other_key = make_certificate(tmp_path / "other")
    missing = tmp_path / "missing"
    for tls, named in (
        ({"ca": str(missing)}, f"registry.tls.ca {missing}: "),
        ({"ca": str(key)}, f"registry.tls.ca {key}: "),
        ({"certificate": str(certificate), "key": str(missing)}, f"registry.tls.key {missing}: "),
        (
            {"certificate": str(certificate), "key": str(other_key)},
            f"registry.tls.certificate {certificate} and registry.tls.key {other_key}: ",
        ),
    ):
        with pytest.raises(StartError, match=f"^{re.escape(named)}"):
            make_registry(entry(kind, tls=tls))
    make_registry(entry(kind, tls={"certificate": str(certificate), "key": str(key)}))


def test_without_a_ca_the_systems_authorities_count() -> None:
    tls = entry("etcd", tls={}).tls
    assert tls
    assert client_context(tls)
    assert b"-----BEGIN CERTIFICATE-----" in authorities(tls)
