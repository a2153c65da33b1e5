"""What is said to an endpoint, and what its answer means: a module for each kind, without I/O."""

from __future__ import annotations

from collections.abc import Callable

from pysidecar.address import Address
from pysidecar.config import HealthCheck
from pysidecar.health.kinds.bolt import BoltHeartbeat
from pysidecar.health.kinds.conversation import Conversation
from pysidecar.health.kinds.dubbo import DubboHeartbeat
from pysidecar.health.kinds.grpc import GrpcHealth
from pysidecar.health.kinds.http import HttpGet
from pysidecar.health.kinds.http2 import Http2Get

__all__ = ["conversation_for"]

_CONVERSATIONS: dict[str, Callable[[HealthCheck, Address], Conversation]] = {
    "http": HttpGet,
    "grpc": GrpcHealth,
    "bolt": BoltHeartbeat,
    "dubbo": DubboHeartbeat,
}


def conversation_for(
    settings: HealthCheck, protocol: str
) -> Callable[[HealthCheck, Address], Conversation] | None:
    """What begins a conversation with endpoints that speak this. None with ``tcp``: where nothing
    is said, to be connected is all."""
    kind = settings.kind(protocol)
    if kind == "http" and protocol in ("http2", "grpc", "tri"):
        return Http2Get
    return _CONVERSATIONS.get(kind)
