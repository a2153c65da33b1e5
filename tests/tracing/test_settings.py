"""The section ``tracing`` of the configuration."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from pysidecar.config import Config, ConfigError, parse
from pysidecar.dataplane.spans import native_tracing
from pysidecar.tracing import Tracing

_OTLP = {"otlp": "http://127.0.0.1:4318"}


def _parse(**tracing: Any) -> Config:
    return parse(yaml.safe_dump({"tracing": {**_OTLP, **tracing}}))


def test_the_defaults() -> None:
    tracing = _parse().tracing
    assert tracing is not None
    assert tracing.sample == Fraction(1, 100)
    assert tracing.propagate == ("w3c", "sofa")
    assert _parse().to_plain()["tracing"] == {
        "otlp": "http://127.0.0.1:4318",
        "protocol": "http",
        "sample": "1%",
        "service_name": "pysidecar",
        "propagate": ["w3c", "sofa"],
        "headers": {},
        "resource": {},
        "spans_per_second": 1000,
        "ca": None,
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("otlp", "127.0.0.1:4318", "expected the URL of a collector"),
        ("otlp", "ftp://a", "expected the URL of a collector"),
        ("otlp", "http://a:99999", "expected the URL of a collector"),
        ("otlp", "http://a/?b", "without ? and #"),
        ("otlp", "http://me:s3cret@a", "expected no user and password"),
        ("protocol", "udp", "expected 'http' or 'grpc'"),
        ("sample", 1, "expected a percentage from 0% to 100%, such as 1%"),
        ("sample", "101%", "expected a percentage"),
        ("sample", "-1%", "expected a percentage"),
        ("propagate", "jaeger", "expected 'w3c', 'b3', 'b3multi' or 'sofa'"),
        ("propagate", ["w3c", "w3c"], "expected each form once"),
        ("propagate", [], "expected at least one entry"),
        ("headers", "Bearer s3cret", "expected at most 32 headers"),
        ("headers", {"a b": "s3cret"}, "expected names of headers"),
        ("headers", {"a": "s3cret\n"}, "as value of a"),
        ("resource", {"a": 1}, "whose values are texts"),
        ("spans_per_second", 0, "expected"),
        ("ca", "/ca.pem", "expected a URL with https"),
        ("service_name", "", "expected"),
        ("sampel", "1%", "did you mean sample?"),
    ],
)
def test_what_makes_no_sense_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _parse(**{key: value})
    assert message in str(caught.value)
    assert "configuration:" in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_grpc_has_no_path() -> None:
    with pytest.raises(ConfigError, match="expected no path in otlp with protocol: grpc"):
        _parse(otlp="http://127.0.0.1:4317/v1", protocol="grpc")


def test_a_collector_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match=r"tracing\.otlp: expected this key"):
        parse("tracing: {sample: 1%}")


def test_the_bound_is_that_of_opentelemetry() -> None:
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    for percentage in ("0%", "0.0001%", "1%", "33.3%", "50%", "99.9999%"):
        tracing = _parse(sample=percentage).tracing
        assert tracing is not None
        native = native_tracing(["w3c"], tracing.sample)
        sampler = TraceIdRatioBased(float(tracing.sample))
        assert abs(native.bound - sampler.bound) <= 1 << 12  # of 2**64: floating point
        assert native.all == 0
    assert native_tracing(["w3c"], Fraction(1)).all == 1


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Tracing.check(_parse())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    Tracing.check(parse(""))
    with pytest.raises(ValueError, match=r"proto\.grpc: pip install 'pysidecar\[tracing\]'"):
        Tracing.check(_parse(protocol="grpc"))


def test_nothing_is_imported_that_is_not_used() -> None:
    import subprocess
    import sys

    code = (
        "import sys, pysidecar.sidecar, pysidecar.cli;"
        "sys.exit(any(name.split('.')[0] in ('opentelemetry', 'grpc') for name in sys.modules))"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
