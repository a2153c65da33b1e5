"""The mesh API: applications say by HTTP what they provide and want, as SOFARPC's registry `mesh`
and anthunder do."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Sequence
from typing import Final

from pysidecar.address import Address
from pysidecar.config import Takeover
from pysidecar.listeners import has_ipv6_loopback
from pysidecar.registry.service import VARIED, ServiceKey
from pysidecar.takeover.applications import Applications, Offer, Unpublish
from pysidecar.takeover.bodies import Body, BodyError, service_key
from pysidecar.takeover.json_api import Answer, JsonApi, Settled
from pysidecar.takeover.table import ServiceTable

__all__ = ["MeshApi"]

# What clients call them. anthunder says DEFAULT, or nothing.
_PROTOCOLS: Final = {
    "": "bolt",
    "default": "bolt",
    "bolt": "bolt",
    "dubbo": "dubbo",
    "http": "http",
    "rest": "http",
    "grpc": "grpc",
    "tri": "tri",
    "triple": "tri",
}
_SERVICE: Final = "com.example.Echo:1.0"
_WEIGHTS: Final = ("weight", "_WEIGHT")
_WARMUPS: Final = ("warmupTime", "_WARMUPTIME", "warmup")  # milliseconds; the last one is Dubbo's
_STARTS: Final = ("startTime", "timestamp")  # milliseconds since the epoch; likewise
_MAX_WEIGHT: Final = 10_000
_MAX_WARMUP: Final = 86_400_000
_MAX_TIME: Final = 1 << 43


class MeshApi(JsonApi):
    """On a listener that the caller opened. ``own_ports`` are those of the sidecar, which nobody
    may publish; ``unpublish`` is called in the table's place; for ``settled`` see ``JsonApi``."""

    def __init__(
        self,
        table: ServiceTable,
        settings: Takeover,
        listener: socket.socket,
        *,
        own_ports: Collection[int] = (),
        unpublish: Unpublish | None = None,
        settled: Settled | None = None,
    ) -> None:
        super().__init__(
            listener,
            "takeover.api",
            {
                "/configs/application": self._application,
                "/services/publish": self._publish,
                "/services/unpublish": self._unpublish,
                "/services/subscribe": self._subscribe,
                "/services/unsubscribe": self._unsubscribe,
            },
            _answer,
            settled,
        )
        self._table = table
        self._consumers = settings.consumer
        self._applications = Applications(
            table, settings, {self.address.port, *own_ports}, unpublish
        )

    async def _application(self, value: object, uid: int) -> Answer:
        """Comes first, and often several times. Nothing of it is needed, or kept: publishing names
        the application again, and the rest may be secret."""
        body = Body(value)
        if "appName" not in body:
            raise BodyError("appName: expected a name such as orders")
        for key in ("appName", "dataCenter", "zone"):
            body.text(key)
        return _answer()

    async def _publish(self, value: object, uid: int) -> Answer:
        body = Body(value)
        service = _service(body)
        about = body.part("providerMetaInfo")
        properties = about.part("properties")
        self._applications.publish(
            Offer(
                service,
                body.number("port", 1, 65535),
                about.text("appName"),
                *_warming(properties),
                _metadata(about, properties),
            ),
            uid,
        )
        return _answer()

    async def _unpublish(self, value: object, uid: int) -> Answer:
        await self._applications.unpublish(_service(Body(value)), uid)
        return _answer()

    async def _subscribe(self, value: object, uid: int) -> Answer:
        body = Body(value)
        service = _service(body)
        self._table.subscribe(service, uid)
        return {
            **_answer(),
            "serviceName": body.name("serviceName", _SERVICE),
            "datas": [f"{self._consumer(service)}?{_query(service)}"],
        }

    async def _unsubscribe(self, value: object, uid: int) -> Answer:
        self._table.unsubscribe(_service(Body(value)), uid)
        return _answer()

    def _consumer(self, service: ServiceKey) -> Address:
        """Where to call it. Dubbo never connects to 127.x."""
        consumers: Sequence[Address] = self._consumers
        if service.protocol in VARIED:
            consumers = [each for each in consumers if not each.host.startswith("127.")]
            if not consumers and has_ipv6_loopback():
                return Address("::1", self._consumers[0].port)
        consumer = (consumers or self._consumers)[0]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(consumer.host, consumer.host)
        return Address(host, consumer.port)


def _answer(reason: str = "") -> Answer:
    return {"success": not reason, "errorMessage": reason}


def _service(body: Body) -> ServiceKey:
    protocol = _PROTOCOLS.get(body.text("protocolType").lower())
    if protocol is None:
        raise BodyError("protocolType: expected bolt, dubbo, tri, grpc, http or rest")
    return service_key(
        protocol,
        body.name("serviceName", _SERVICE),
        body.name("group", "SOFA", required=False),
    )


def _query(service: ServiceKey) -> str:
    """All that SOFARPC reads of an answer: the protocol, of which 1 is bolt, and its own
    generation."""
    return f"p={'1' if service.protocol == 'bolt' else service.protocol}&v=4.0"


def _warming(properties: Body) -> tuple[int, float, float]:
    """Weight, seconds of warming up, and the start that those count from."""
    weight = _first(properties, _WEIGHTS, _MAX_WEIGHT)
    warmup = (_first(properties, _WARMUPS, _MAX_WARMUP) or 0) / 1000
    started = (_first(properties, _STARTS, _MAX_TIME) or 0) / 1000
    if warmup and not started:
        started = time.time()
    return 100 if weight is None else weight, warmup, started


def _first(properties: Body, keys: Sequence[str], most: int) -> int | None:
    found = (properties.number(key, 0, most) for key in keys)
    return next((number for number in found if number is not None), None)


def _metadata(about: Body, properties: Body) -> dict[str, str]:
    """By the names that SOFARPC has for them in registries."""
    understood = {*_WEIGHTS, *_WARMUPS, *_STARTS}
    metadata = {key: text for key, text in properties.texts().items() if key not in understood}
    for name, key in (("serializeType", "serialization"), ("protocol", "p"), ("version", "v")):
        if text := about.text(name):
            metadata[key] = text
    return metadata
