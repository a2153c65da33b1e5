"""Marks of packets and sockets (SO_MARK), each the decimal number of a port that it has to do with.
None has the bits 0x4000 and 0x8000, which mean "masquerade" and "drop" to kube-proxy."""

from __future__ import annotations

__all__ = ["INBOUND_MARK", "OUTBOUND_MARK", "REFUSE_MARK"]

INBOUND_MARK = 15006
"""SO_MARK of the inbound listeners and of the sockets from there to the application (tproxy)."""
OUTBOUND_MARK = 15001
"""SO_MARK of the sidecar's own connections, which outbound redirect leaves alone."""
REFUSE_MARK = 15008
"""First packets of connections that nobody takes; set and rejected by rules."""
