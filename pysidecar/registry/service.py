"""What a registry knows: services, and who provides them."""

from __future__ import annotations

from dataclasses import dataclass

from pysidecar.address import Address

__all__ = ["CALLS", "GRPC_COMMON", "VARIED", "Instance", "Registration", "ServiceKey"]

CALLS = ("grpc", "tri")
"""The protocols whose requests are calls of gRPC."""

GRPC_COMMON = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)
"""Services that every application has for itself: they are about its other ones."""

VARIED = ("dubbo", "tri")
"""The protocols whose services have a version and a group beside their name."""


@dataclass(frozen=True, slots=True, order=True)
class ServiceKey:
    """Names a service, in every registry and in every request for it."""

    protocol: str
    """What it speaks: ``bolt``, ``dubbo``, ``http``, ``grpc``, or ``tri``, which is Dubbo's
    triple."""

    name: str
    """Of bolt ``interface:version`` or ``interface:version:uniqueId``, as SOFARPC writes it; of
    dubbo and tri the interface; of http the host; of grpc the service's full name."""

    version: str = ""
    """Of dubbo and tri; empty: none."""

    group: str = ""
    """Of dubbo and tri; empty: none. Of bolt the registry's group, where it is not the default
    one."""

    @classmethod
    def named(cls, protocol: str, name: str, version: str = "", group: str = "") -> ServiceKey:
        """From what people and programs write: names of HTTP are without regard to case, as hosts
        are, and stand in lower case here and in registries. Dubbo takes 0.0.0 for no version."""
        if protocol in VARIED and version == "0.0.0":
            version = ""
        return cls(protocol, name.lower() if protocol == "http" else name, version, group)

    @classmethod
    def parse(cls, protocol: str, text: str) -> ServiceKey:
        """From what ``str`` makes of it; of bolt, http and grpc, text is the name as a whole."""
        if protocol not in VARIED:
            return cls.named(protocol, text)
        group, _, name = text.rpartition("/")
        name, _, version = name.partition(":")
        return cls.named(protocol, name, version, group)

    def __str__(self) -> str:
        """As Dubbo writes it, and people read it: ``group/name:version``."""
        name = f"{self.name}:{self.version}" if self.version else self.name
        return f"{self.group}/{name}" if self.group else name


@dataclass(frozen=True, slots=True)
class Instance:
    """One that provides a service."""

    address: Address

    weight: int = 100
    """Its share when it is warm, in proportion to the others'. 0: it is to get no requests."""

    started: float = 0.0
    """Seconds since the epoch; 0: not known, and then it is warm."""

    warmup: float = 0.0
    """Seconds from its start in which its share grows up to ``weight``; 0: it is warm at once."""

    zone: str = ""
    """Where it runs; empty: not known."""

    metadata: tuple[tuple[str, str], ...] = ()
    """What else the registry knows, sorted by key: for those who are to read it there, and for
    people. Each key once."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What is to be in the registry for as long as we run: a service, and where it is provided."""

    service: ServiceKey
    instance: Instance
