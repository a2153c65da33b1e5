"""Other users of the host, who do all that they can to a sidecar for a while: others' services go
on, and nothing stays behind but what a user may have."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pysidecar.takeover.table import MAX_PER_USER
from tests.interop.servers import free_port
from tests.takeover.test_flow import API, CONSUMER, PROVIDER, Pod, _Application, _registry
from tests.takeover.watching import watching
from tests.users import USERS, needs_root, start_script
from tests.waiting import PATIENCE, eventually

pytestmark = needs_root

_MIB = 1 << 20

# What Python has imported before it became another user has to do.
_COMMON = """
import time

host, api, consumer, provider, seconds = sys.argv[1], *map(int, sys.argv[2:6])
end = time.monotonic() + seconds

def connect(port):
    client = socket.socket()
    client.settimeout(5)
    client.connect((host, port))
    return client

def ask(client, path, body, more=""):
    head = f"POST {path} HTTP/1.1\\r\\nHost: localhost\\r\\n{more}Content-Length: {len(body)}"
    client.sendall(f"{head}\\r\\n\\r\\n{body}".encode())
    answer = b""
    while not answer.endswith(b"}"):
        if not (more := client.recv(65536)):
            raise OSError("closed, as others of ours need the place")
        answer += more
    return answer

def over_and_over(attack):
    count = 0
    while time.monotonic() < end:
        try:
            attack(count)
        except OSError:
            pass
        count += 1
    print(count, flush=True)
"""

_ATTACKS = {
    "churns names": """
def attack(count):
    with connect(api) as client:
        for number in range(100 * count, 100 * count + 100):
            body = '{"serviceName":"churn-%d-%d","protocolType":"http","port":%d}'
            body %= (os.getuid(), number % 3000, 1 + number % 60000)
            for do in ("publish", "subscribe", "unsubscribe"):
                ask(client, f"/services/{do}", body)
            if number % 3 == 0:
                ask(client, "/services/unpublish", body)
over_and_over(attack)
""",
    "wants what is root's": """
def attack(count):
    with connect(api) as client:
        for do in ("publish", "unpublish", "unsubscribe"):
            body = '{"serviceName":"orders","protocolType":"http","port":%d}' % (1 + count % 60000)
            answer = ask(client, f"/services/{do}", body)
            if do != "unsubscribe" and b'"success": true' in answer:
                print("taken", flush=True)
over_and_over(attack)
""",
    "connects and says nothing": """
def attack(count):
    kept = []
    for _ in range(300):
        for port in (api, consumer, provider):
            try:
                kept.append(connect(port))
            except OSError:
                pass
    time.sleep(0.3)
    for client in kept:
        client.close()
over_and_over(attack)
""",
    "sends without end": """
def attack(count):
    head = b"POST /services/publish HTTP/1.1\\r\\nHost: localhost\\r\\n"
    long = b"Content-Length: 1000000000\\r\\n\\r\\n"
    more = (long, b"Transfer-Encoding: chunked\\r\\n\\r\\n", b"A: ")
    with connect((api, consumer, provider)[count % 3]) as client:
        client.sendall(head + more[count // 3 % 3])
        piece = (b"x", b"FFFF\\r\\n" + b"x" * 65535 + b"\\r\\n", b"x")[count // 3 % 3]
        for _ in range(100):
            client.sendall(piece * (65536 // len(piece) + 1))
over_and_over(attack)
""",
    "poses as a web page": """
tricks = ["Origin: http://127.0.0.1", "Origin: null", "Host: evil.example", "Host: localhost:1"]
def attack(count):
    with connect(api) as client:
        trick = tricks[count % 4] + "\\r\\n"
        answer = ask(client, "/services/subscribe", '{"serviceName":"page"}', trick)
        if not answer.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400")):
            print("taken", answer, flush=True)
over_and_over(attack)
""",
    "sends noise": """
starts = (b"", b"\\x01\\x01\\x00\\x01", b"\\xda\\xbb\\xc2\\x00", b"GET / HTTP/1.1\\r\\n")
def attack(count):
    with connect((api, consumer, provider)[count % 3]) as client:
        client.sendall(starts[count // 3 % 4])
        client.sendall(os.urandom(1 + count % 5000))
over_and_over(attack)
""",
}


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """One whose root publishes a service, and calls it."""
    address = f"127.0.0.1:{free_port()}"
    orders = _Application("orders")
    made = Pod(address)
    with _registry(address, tmp_path / "registry.db"), made.sidecar:
        made.publish("orders", orders.server_port)
        made.subscribe("orders")
        made.gets("orders", "orders orders")
        yield made
    orders.leave()


def _attack(pod: Pod, seconds: int, attacks: list[tuple[int, str]]) -> list[subprocess.Popen[str]]:
    return [
        start_script(user, _COMMON + _ATTACKS[attack], pod.host, API, CONSUMER, PROVIDER, seconds)
        for user, attack in attacks
    ]


def _end(processes: list[subprocess.Popen[str]], seconds: int) -> None:
    ended = [process.communicate(timeout=seconds + 2 * PATIENCE) for process in processes]
    for process, (output, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors[-2000:]
        count, *others = output.split("\n")
        assert int(count) > 0
        assert others == [""], output


@pytest.mark.parametrize(
    ("seconds", "users"),
    [
        pytest.param(1, USERS[:1], id="short"),
        pytest.param(60, USERS, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(400)]),
    ],
)
def test_whatever_users_do_others_services_go_on(
    pod: Pod, seconds: int, users: tuple[int, ...]
) -> None:
    process = psutil.Process(pod.sidecar.pid)
    attacks = [(user, attack) for user in users for attack in _ATTACKS]
    before = process.num_fds()
    peaks = []
    for _ in range(2):  # the first time it grows by what is theirs
        with watching(pod, "orders") as seen:
            attackers = _attack(pod, seconds, attacks)
            pod.publish("late", 1)
            pod.subscribe("late")
            assert pod.say("/services/unpublish", serviceName="late", protocolType="http")[
                "success"
            ]
            _end(attackers, seconds)
        assert not seen.failed
        assert seen.answered
        eventually(lambda: process.num_fds() <= before + 4, lambda: str(process.num_fds()))
        peaks.append(max(seen.resident))
    assert peaks[1] < peaks[0] + 30 * _MIB
    assert peaks[0] < 300 * _MIB
    assert pod.get("orders") == (200, "orders orders")
    theirs = [
        each
        for each in pod.sidecar.admin_json("/services")
        if (each["service"] or "").startswith("churn-") and each["role"] == "published"
    ]
    assert len(theirs) <= MAX_PER_USER * len(users)
    assert len(pod.sidecar.log) < 100_000
