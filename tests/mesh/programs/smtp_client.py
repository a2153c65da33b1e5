"""Sends a mail and prints the server's answer: host, port."""

from __future__ import annotations

import smtplib
import sys

with smtplib.SMTP(sys.argv[1], int(sys.argv[2]), local_hostname="client", timeout=10) as server:
    server.ehlo()
    server.mail("sender@example.com")
    server.rcpt("receiver@example.com")
    print(*server.data(b"Subject: test\r\n\r\ntest\r\n"))
