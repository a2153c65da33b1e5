"""What takeover found: what it costs to bring a change of one service to the data plane, by how
many there are, each with a hundred endpoints."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

from pysidecar.address import Address
from pysidecar.config import parse
from pysidecar.dataplane import DataPlane, Timeouts
from pysidecar.registry.service import ServiceKey
from pysidecar.routing.found import FoundService, FoundServices, Role
from pysidecar.routing.services import ServiceNumbers, pack_services

_COUNTS = (100, 1_000)
_ENDPOINTS = 100
_ROUNDS = 20


def measure() -> None:
    for count in _COUNTS:
        _change(count)


def _service(number: int) -> FoundService:
    key = ServiceKey("dubbo", f"com.example.orders.Service{number}", "1.0")
    hosts = (f"10.{number >> 8}.{number & 255}.{n + 1}" for n in range(_ENDPOINTS))
    return FoundService(key, Role.SUBSCRIBED, tuple((Address(host, 20880), 100) for host in hosts))


def _change(count: int) -> None:
    config, numbers = parse("takeover: {}"), ServiceNumbers()
    services = [_service(number) for number in range(count)]
    data = DataPlane(workers=2, timeouts=Timeouts())
    data.start()
    packing, setting = [], []
    for turn in range(_ROUNDS + 1):
        if turn:
            changed = services[turn]
            services[turn] = replace(changed, endpoints=changed.endpoints[1:])
        start = time.thread_time()
        packed = pack_services(config, numbers, found=FoundServices(tuple(services)))
        packing.append(time.thread_time() - start)
        start = time.thread_time()
        data.set_services(packed)
        setting.append(time.thread_time() - start)
        data.clear_event()
    data.stop()
    data.close()
    print(
        f"  1 of {count:,} services with {_ENDPOINTS} endpoints each changes: "
        f"{statistics.median(packing[1:]) * 1e3:.1f} ms to pack the table and "
        f"{statistics.median(setting[1:]) * 1e3:.1f} ms to set it; all of them at once "
        f"{packing[0] * 1e3:.0f} ms and {setting[0] * 1e3:.0f} ms",
        flush=True,
    )
