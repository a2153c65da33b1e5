"""What takeover knows of its services, for people and programs, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pysidecar.registry.service import Instance, ServiceKey
from pysidecar.routing.found import Role
from pysidecar.takeover.table import Publication, ServiceTable

__all__ = ["describe"]


def describe(
    table: ServiceTable,
    role: Role,
    service: ServiceKey,
    is_registered: Callable[[ServiceKey], bool],
    is_cut: Callable[[ServiceKey], bool],
) -> dict[str, Any]:
    """The part of an entry of ``/services`` that only takeover knows; ``instances`` is an iterator,
    since there may be very many."""
    about: dict[str, Any] = {"version": service.version or None, "group": service.group or None}
    if role is Role.PUBLISHED:
        about["registered"] = is_registered(service)
        about["publications"] = [_publication(each) for each in table.published_of(service)]
    else:
        about["known"] = table.is_known(service)
        about["cut"] = is_cut(service)
        about["users"] = sorted(table.users_of(service))
        about["instances"] = map(_instance, table.instances_of(service))
    return about


def _publication(publication: Publication) -> dict[str, Any]:
    return {
        "address": str(publication.address),
        "uid": publication.uid if publication.uid >= 0 else None,
        "application": publication.application or None,
        "weight": publication.weight,
        "listens": publication.alive,
        "leaving": publication.leaving,
        "metadata": dict(publication.metadata),
    }


def _instance(instance: Instance) -> dict[str, Any]:
    return {
        "address": str(instance.address),
        "weight": instance.weight,
        "zone": instance.zone or None,
        "warmup_s": instance.warmup,
        "started": instance.started or None,
        "metadata": dict(instance.metadata),
    }
