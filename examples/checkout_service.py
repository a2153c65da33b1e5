"""An application as it might be in production: it charges an order at the payment service.

It knows nothing of a sidecar. ``test_checkout_service.py`` tests it as it is.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request

PAYMENT_SERVICE = "http://10.20.30.40:8080"
TIMEOUT = 2  # seconds


def charge(order: str, cents: int) -> str:
    """The payment's number. Raises OSError where the payment service cannot be reached."""
    request = urllib.request.Request(
        f"{PAYMENT_SERVICE}/charges",
        data=json.dumps({"order": order, "cents": cents}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        return str(json.load(response)["payment"])


def main() -> int:
    """Charges an order: its name and the amount in cents."""
    order, cents = sys.argv[1:]
    try:
        payment = charge(order, int(cents))
    except urllib.error.HTTPError as error:
        print(f"order {order}: payment refused ({error.code})")
        return 1
    except OSError as error:
        print(f"order {order}: try again later ({error})")
        return 2
    print(f"order {order}: paid, {payment}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
