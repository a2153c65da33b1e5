"""Another proxy as the sidecar: whatever accepts PROXY protocol v2 can stand behind the hook."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pysidecar import hook_path
from pysidecar.address import Address
from pysidecar.config.values import WhenAway
from pysidecar.dataplane import DataPlane, Timeouts
from pysidecar.interception.policy_page import Policy, PolicyPage, State
from pysidecar.routing.rules import compile_rules

__all__ = ["hooked_to"]


@contextlib.contextmanager
def hooked_to(
    listeners: Sequence[Address], page_path: Path, *, served_by: int | None = None
) -> Iterator[dict[str, str]]:
    """The variables that hook a process to a proxy that is not ours, everything captured.

    ``page_path`` is where the policy page is, until the end of the block. ``served_by`` is the uid
    as which the proxy runs, by default that of this process: the hook sends to no other user's
    listener, except root's.
    """
    page = PolicyPage(page_path, socket_mode=0o600)
    # The proxy gives no sign of life to the page; a data plane without listeners does nothing else.
    heartbeat = DataPlane(workers=1, timeouts=Timeouts())
    heartbeat.set_page(page.buffer)
    heartbeat.start()
    try:
        page.publish(
            Policy(
                transport="header",
                when_away=WhenAway("refuse"),
                control_path=Path(),
                listeners=listeners,
                parks=[],
                own=[],
                rules=compile_rules([]),
                server_uid=os.geteuid() if served_by is None else served_by,
            ),
            State.SERVING,
        )
        yield {"LD_PRELOAD": str(hook_path()), "MOSNHOOK_POLICY": str(page_path)}
    finally:
        page.remove()
        heartbeat.stop()
        heartbeat.close()
