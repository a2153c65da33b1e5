"""What is the same for every registry: what we want of it, and that it comes about."""

from __future__ import annotations

from collections.abc import Sequence

from pysidecar.registry import Pushed, Registry
from pysidecar.registry.service import Registration, ServiceKey

__all__ = ["RegistryClient"]


class RegistryClient:
    """Keeps what we want registered and watched, and brings it about by one session after the
    other: whatever fails is tried again, and after each return of the registry all of it is said
    anew. No call here waits or fails."""

    def __init__(self, registry: Registry, pushed: Pushed) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Begins to connect, in the running event loop."""

    async def stop(self) -> None:
        """Takes everything back that was registered, for at most some seconds, and ends."""

    def register(self, registration: Registration) -> None:
        """One of the same service and address replaces it."""

    def unregister(self, registration: Registration) -> None:
        """It is wanted no more."""

    async def unregistered(self, registrations: Sequence[Registration], timeout: float) -> None:
        """Returns when the registry has removed those, or after ``timeout`` seconds."""

    def subscribe(self, service: ServiceKey) -> None:
        """It is pushed from here on."""

    def unsubscribe(self, service: ServiceKey) -> None:
        """Not any more."""

    @property
    def state(self) -> str:
        """For people: ``connected``, or why not."""
        return ""

    def is_registered(self, registration: Registration) -> bool:
        """Whether the registry has taken it, in the session that there is now."""
        return False
