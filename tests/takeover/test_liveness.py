"""Applications that end, and come back."""

from __future__ import annotations

import errno
import socket
import time

import pytest

from pysidecar.address import Address
from pysidecar.registry.service import ServiceKey
from pysidecar.takeover import liveness
from pysidecar.takeover.liveness import Liveness
from pysidecar.takeover.table import Publication, ServiceTable
from tests.ports import free_port
from tests.users import USERS, needs_root, start_script

CONFIGURATION = -1  # in the place of a uid
ECHO = ServiceKey("bolt", "Echo:1.0")

_LISTEN = """
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as listener:
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""


class Application:
    """One of another user, that listens."""

    def __init__(self, user: int, port: int = 0) -> None:
        self.user = user
        self.process = start_script(user, _LISTEN, port)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def publication(self, alive: bool = False) -> Publication:
        return Publication(ECHO, Address("127.0.0.1", self.port), self.user, alive=alive)


def is_alive(table: ServiceTable) -> bool:
    (publication,) = table.publications
    Liveness(table).look()
    (publication,) = table.publications
    return publication.alive


@needs_root
def test_an_application_that_is_killed_is_not_alive_until_it_is_back() -> None:
    application = Application(USERS[0], free_port())
    table = ServiceTable()
    table.publish(application.publication())
    try:
        assert is_alive(table)
    finally:
        application.kill()
    assert not is_alive(table)
    application = Application(USERS[0], application.port)
    try:
        assert is_alive(table)
    finally:
        application.kill()


@needs_root
@pytest.mark.parametrize(("owner", "alive"), [(USERS[1], False), (0, True), (CONFIGURATION, True)])
def test_who_else_listens_there_is_not_the_application(owner: int, alive: bool) -> None:
    application = Application(USERS[0])
    try:
        table = ServiceTable()
        table.publish(Publication(ECHO, Address("127.0.0.1", application.port), owner))
        assert is_alive(table) == alive
    finally:
        application.kill()


@needs_root
def test_nobody_is_served_by_who_took_the_port() -> None:
    table = ServiceTable()
    port = free_port()
    table.publish(Publication(ECHO, Address("127.0.0.1", port), USERS[1], alive=False))
    assert not is_alive(table)
    assert [each.taken for each in table.publications] == [False]
    application = Application(USERS[0], port)
    try:
        assert not is_alive(table)
        assert [each.taken for each in table.publications] == [True]
    finally:
        application.kill()
    assert not is_alive(table)
    assert [each.taken for each in table.publications] == [False]


@pytest.mark.parametrize(
    ("listens", "published", "alive"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("::", "127.0.0.1", True),
        ("::", "::1", True),
        ("::1", "::1", True),
        ("::1", "127.0.0.1", False),
        ("127.0.0.2", "127.0.0.1", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "::1", False),
    ],
)
def test_it_has_to_be_reached_at_its_address(listens: str, published: str, alive: bool) -> None:
    family = socket.AF_INET6 if ":" in listens else socket.AF_INET
    dual = family == socket.AF_INET6
    with socket.create_server((listens, 0), family=family, dualstack_ipv6=dual) as application:
        table = ServiceTable()
        address = Address(published, application.getsockname()[1])
        table.publish(Publication(ECHO, address, 0, alive=not alive))
        assert is_alive(table) == alive


def test_a_listener_of_ipv6_only_is_not_reached_by_ipv4() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as application:
        table = ServiceTable()
        table.publish(Publication(ECHO, Address("127.0.0.1", application.getsockname()[1]), 0))
        assert not is_alive(table)


def test_a_bound_socket_that_does_not_listen_is_not_alive() -> None:
    with socket.socket() as application:
        application.bind(("127.0.0.1", 0))
        table = ServiceTable()
        table.publish(Publication(ECHO, Address("127.0.0.1", application.getsockname()[1]), 0))
        assert not is_alive(table)
        application.listen()
        assert is_alive(table)


def test_without_the_kernels_word_all_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(ports: object) -> None:
        raise OSError(errno.ENOENT, "no sock_diag")

    monkeypatch.setattr(liveness, "listening_sockets", fail)
    table = ServiceTable()
    table.publish(Publication(ECHO, Address("127.0.0.1", 1), 0, alive=True))
    looker = Liveness(table)
    for _ in range(3):
        looker.look()
    (publication,) = table.publications
    assert publication.alive
    assert caplog.text.count("no sock_diag") == 1


def test_who_is_gone_for_long_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    table = ServiceTable()
    place = Address("127.0.0.1", 1)
    table.publish(Publication(ECHO, place, 1000))
    table.publish(Publication(ServiceKey("http", "configured"), place, CONFIGURATION))
    looker = Liveness(table)
    looker.look()
    now = liveness.FORGET_AFTER - 1
    looker.look()
    assert len(list(table.publications)) == 2
    now += 1
    looker.look()
    assert [each.uid for each in table.publications] == [CONFIGURATION]
    assert table.counts(1000) == (0, 0)
