"""What services and rules say about failures, overload and copies, in the data plane's form."""

from __future__ import annotations

from collections.abc import Mapping

from pysidecar.config import RequestRule, ServicePolicy
from pysidecar.config.resilience import GRPC_CONDITIONS, CircuitBreaker, Mirror, Retries
from pysidecar.dataplane import lib

__all__ = ["Handlings", "Resiliences", "milliseconds", "shares"]

_RESET = (lib.DP_RETRY_RESET_UNSENT, lib.DP_RETRY_RESET, lib.DP_RETRY_ATTEMPT_TIMEOUT)
_ANY = (lib.DP_RETRY_CONNECT_FAILURE, lib.DP_RETRY_REFUSED, *_RESET)
_REASONS = {
    "connect_failure": (lib.DP_RETRY_CONNECT_FAILURE,),
    "refused_stream": (lib.DP_RETRY_REFUSED,),
    "reset_before_request": (lib.DP_RETRY_RESET_UNSENT,),
    "reset_before_response": _RESET,
    "gateway_error": _ANY,
    "5xx": _ANY,
}
_STATUSES = {
    "gateway_error": (502, 503, 504),
    "5xx": range(500, 600),
    "retriable_4xx": (409,),
    **{name: (status,) for name, status in GRPC_CONDITIONS.items()},
}
_NONE = 0
"""As an index: the first one is 1."""


def milliseconds(seconds: float) -> int:
    """As the data plane counts them."""
    return min(round(seconds * 1000), 0xFFFFFFFF)


def shares(percent: float) -> int:
    """As the data plane counts them."""
    return round(percent / 100 * int(lib.DP_SHARES))


def _reasons(retries: Retries) -> int:
    return sum({1 << reason for condition in retries.on for reason in _REASONS.get(condition, ())})


def _statuses(retries: Retries) -> bytes:
    bits = 0
    for condition in retries.on:
        numbers = (int(condition),) if condition.isdigit() else _STATUSES.get(condition, ())
        for number in numbers:
            bits |= 1 << number
    return bits.to_bytes(lib.DP_STATUSES // 8, "little")


class Resiliences:
    """An array of ``struct dp_resilience``, of services that need one. ``places`` are the indices
    of services by name."""

    def __init__(self, places: Mapping[str, int]) -> None:
        self._places = places
        self._indices: dict[tuple[int | bytes, ...], int] = {}

    @property
    def items(self) -> list[tuple[int | bytes, ...]]:
        """In their order."""
        return list(self._indices)

    def add(
        self, service: ServicePolicy, mirror: Mirror | None = None, *, hedged: bool = False
    ) -> int:
        """The index for ``struct dp_service``. ``hedged``: some of its requests are."""
        breaker = service.circuit_breaker or CircuitBreaker()
        if not (service.retries or service.rate_limit or mirror or breaker.requests or hedged):
            return _NONE
        retries, limit = service.retries, service.rate_limit
        return self._indices.setdefault(
            (
                *_pack_retries(retries),
                breaker.retries,
                breaker.requests or 0,
                *(
                    (limit.requests, milliseconds(limit.per), limit.most_at_once)
                    if limit
                    else (0, 0, 0)
                ),
                *((shares(mirror.percent), self._places[mirror.to]) if mirror else (0, 0)),
                0,
                _statuses(retries) if retries else bytes(lib.DP_STATUSES // 8),
            ),
            len(self._indices) + 1,
        )


def _pack_retries(retries: Retries | None) -> tuple[int, ...]:
    if retries is None:  # hedging has a budget all the same
        return (0, 0, 0, 0, 0, shares(Retries().budget))
    return (
        *(retries.attempts, _reasons(retries), milliseconds(retries.per_try_timeout or 0)),
        *(milliseconds(retries.backoff.base), milliseconds(retries.backoff.longest)),
        shares(retries.budget),
    )


class Handlings:
    """An array of ``struct dp_handling``, of rules that need one."""

    def __init__(self) -> None:
        self._indices: dict[tuple[int, ...], int] = {}

    @property
    def items(self) -> list[tuple[int, ...]]:
        """In their order."""
        return list(self._indices)

    def add(self, rule: RequestRule) -> int:
        """The index for ``struct dp_rule``."""
        if not (rule.fault or rule.hedge or rule.idempotent):
            return _NONE
        delay = rule.fault.delay if rule.fault else None
        abort = rule.fault.abort if rule.fault else None
        handling = (
            *((milliseconds(delay.fixed), shares(delay.percent)) if delay else (0, 0)),
            *((abort.status, shares(abort.percent)) if abort else (0, 0)),
            milliseconds(rule.hedge.after) if rule.hedge else 0,
            int(rule.idempotent),
        )
        return self._indices.setdefault(handling, len(self._indices) + 1)
