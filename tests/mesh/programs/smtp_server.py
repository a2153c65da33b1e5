"""An SMTP server (aiosmtpd) that answers a mail with the address that it sees the client at: port.
SMTP is a protocol in which the server speaks first."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiosmtpd.smtp import SMTP


class Handler:
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return f"250 from {session.peer[0]}"


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(Handler()), ["0.0.0.0", "::"], port)
    await server.serve_forever()


asyncio.run(main(int(sys.argv[1])))
