"""Tests of an application with its real network calls: a pytest plugin.

Installing pysidecar registers it. A test asks for fixtures:

``sidecar``
    A running sidecar of its own (`Sidecar`): it captures everything, loopback included, and is gone
    when the test ends. ``sidecar.route("10.1.2.3:443", fake)`` sends that destination to a fake,
    ``sidecar.route("10.1.2.3:443", action="refuse")`` breaks it, ``sidecar.connections()`` tells
    what was called.
``hooked``
    Runs commands under the connect hook (`Hooked`): ``hooked.run([...])`` is ``subprocess.run`` and
    ``hooked.popen([...])`` is ``subprocess.Popen``; both know the connections that the command and
    its children made.
``sidecar_factory``
    Starts sidecars with other settings: ``sidecar_factory({"outbound": {"when_away": "direct"}})``.
    Each has its ``.hooked``.

When a test fails, the logs and access logs of its sidecars are part of the report.
``examples/test_checkout_service.py`` shows it at work. For a sidecar that several tests share,
write a fixture of a wider scope with ``Sidecar`` as a context manager::

    @pytest.fixture(scope="module")
    def shared_sidecar():
        with Sidecar() as sidecar:
            yield sidecar
"""

from __future__ import annotations

from pysidecar.testing.hooked import Hooked, HookedError, HookedProcess, HookedResult
from pysidecar.testing.sidecar import (
    Connection,
    Destination,
    Endpoint,
    Request,
    Sidecar,
    SidecarError,
)

__all__ = [
    "Connection",
    "Destination",
    "Endpoint",
    "Hooked",
    "HookedError",
    "HookedProcess",
    "HookedResult",
    "Request",
    "Sidecar",
    "SidecarError",
]
