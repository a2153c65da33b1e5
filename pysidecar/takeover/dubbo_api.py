"""The mesh API in the form that MOSN has for Dubbo."""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection

from pysidecar.config import Takeover
from pysidecar.registry.service import ServiceKey
from pysidecar.takeover.applications import Applications, Offer, Unpublish
from pysidecar.takeover.bodies import Body, service_key
from pysidecar.takeover.json_api import Answer, JsonApi, Settled
from pysidecar.takeover.table import ServiceTable

__all__ = ["DubboApi"]

log = logging.getLogger(__name__)

_INTERFACE = "com.example.Echo"


class DubboApi(JsonApi):
    """On a listener that the caller opened. ``registry`` is the type of ours, which is used
    whatever an application says; else see ``MeshApi``."""

    def __init__(
        self,
        table: ServiceTable,
        settings: Takeover,
        listener: socket.socket,
        *,
        registry: str = "",
        own_ports: Collection[int] = (),
        unpublish: Unpublish | None = None,
        settled: Settled | None = None,
    ) -> None:
        super().__init__(
            listener,
            "takeover.dubbo_api",
            {
                "/pub": self._publish,
                "/unpub": self._unpublish,
                "/sub": self._subscribe,
                "/unsub": self._unsubscribe,
            },
            lambda reason: {"err_no": 1, "err_msg": reason},
            settled,
        )
        self._table = table
        self._registry = registry
        self._told = False  # that it is another one
        self._applications = Applications(
            table, settings, {self.address.port, *own_ports}, unpublish
        )

    async def _publish(self, value: object, uid: int) -> Answer:
        self._applications.publish(Offer(self._service(value), None), uid)
        return _done("publish")

    async def _unpublish(self, value: object, uid: int) -> Answer:
        await self._applications.unpublish(self._service(value), uid)
        return _done("unpub")

    async def _subscribe(self, value: object, uid: int) -> Answer:
        self._table.subscribe(self._service(value), uid)
        return _done("subscribe")

    async def _unsubscribe(self, value: object, uid: int) -> Answer:
        self._table.unsubscribe(self._service(value), uid)
        return _done("unsubscribe")

    def _service(self, value: object) -> ServiceKey:
        """Methods are not asked for: all of an interface's are taken."""
        body = Body(value)
        self._compare(body.part("registry").text("type"))
        service = body.part("service")
        return service_key(
            "dubbo",
            service.name("interface", _INTERFACE),
            service.name("group", "blue", required=False),
            service.name("version", "1.0.0", required=False),
        )

    def _compare(self, registry: str) -> None:
        if registry and registry != self._registry and not self._told:
            self._told = True
            log.warning(
                "an application names a registry of type %s; its services go to the one that is "
                "configured, of type %s",
                registry,
                self._registry,
            )


def _done(what: str) -> Answer:
    return {"err_no": 0, "err_msg": f"{what} success"}
