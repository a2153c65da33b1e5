"""Redis's and PostgreSQL's own clients and benchmarks."""

from __future__ import annotations

import csv

from tests.interop.mesh import REFUSING, WEB, Mesh
from tests.interop.servers import postgres_program, program

_POSTGRES = ("-h", WEB, "-U", "interop")


def test_redis_cli_sets_and_gets(mesh: Mesh) -> None:
    redis_cli = [program("redis-cli"), "-h", WEB]
    stored, _ = mesh.run([*redis_cli, "set", "transport", mesh.transport])
    assert stored.check().stdout == "OK\n"
    loaded, pid = mesh.run([*redis_cli, "get", "transport"])
    assert loaded.check().stdout == f"{mesh.transport}\n"
    mesh.check(loaded.connection, f"{WEB}:6379", "redis-cli", pid=pid)


def test_redis_benchmark_runs_with_many_clients(mesh: Mesh) -> None:
    clients = 50
    result, pid = mesh.run(
        [
            *(program("redis-benchmark"), "-h", WEB, "-n", "5000", "-c", str(clients)),
            *("-t", "set,get", "--csv"),
        ]
    )
    assert "error" not in result.check().stderr.lower()
    rates = {row[0]: float(row[1]) for row in csv.reader(result.stdout.splitlines()[1:])}
    assert set(rates) == {"SET", "GET"}
    assert all(rate > 0 for rate in rates.values())
    assert len(result.connections) >= 2 * clients
    for connection in result.connections:
        mesh.check(connection, f"{WEB}:6379", "redis-benchmark", pid=pid)


def test_psql_queries(mesh: Mesh, postgres_port: int) -> None:
    query = "select inet_server_port(), 6 * 7"
    result, pid = mesh.run([program("psql"), *_POSTGRES, "-d", "interop", "-XAtc", query])
    assert result.check().stdout == f"{postgres_port}|42\n"
    # /usr/bin/psql is a Perl script that executes the psql of the right version.
    mesh.check(result.connection, f"{WEB}:5432", "psql", pid=pid)


def test_psql_says_that_a_connection_was_refused(mesh: Mesh) -> None:
    result, _ = mesh.run([program("psql"), "-h", REFUSING, "-U", "interop", "-XAtc", "select 1"])
    assert result.returncode == 2  # bad connection
    for connection in result.connections:
        mesh.check(connection, f"{REFUSING}:5432", "psql", error="ECONNREFUSED")
    if mesh.transport == "unix":
        assert "Connection refused" in result.stderr


def test_pgbench_runs_transactions(mesh: Mesh) -> None:
    pgbench = [postgres_program("pgbench"), *_POSTGRES]
    filled, pid = mesh.run([*pgbench, "--initialize", "--quiet", "interop"])
    mesh.check(filled.check().connection, f"{WEB}:5432", "pgbench", pid=pid)

    clients = 4
    load = ["--client", str(clients), "--jobs", "2", "--transactions", "25", "--no-vacuum"]
    result, pid = mesh.run([*pgbench, *load, "interop"])
    assert "number of transactions actually processed: 100/100" in result.check().stdout
    assert len(result.connections) >= clients
    for connection in result.connections:
        mesh.check(connection, f"{WEB}:5432", "pgbench", pid=pid)


def test_pgbench_connects_for_each_transaction(mesh: Mesh) -> None:
    pgbench = [postgres_program("pgbench"), *_POSTGRES, "--connect", "--no-vacuum"]
    load = ["--client", "2", "--transactions", "10", "--file", "/dev/stdin"]
    process = mesh.sidecar.hooked.popen([*pgbench, *load, "interop"], input="select 1;\n")
    result = process.wait().check()
    assert "number of transactions actually processed: 20/20" in result.stdout
    assert len(result.connections) >= 20
    for connection in result.connections:
        mesh.check(connection, f"{WEB}:5432", "pgbench", pid=process.pid)
