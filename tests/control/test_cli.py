"""The command line as users type it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pysidecar import hook_path
from pysidecar.address import Address
from pysidecar.cli import main
from pysidecar.cli.formats import format_age, format_bytes, format_count, format_ms
from pysidecar.text import printable
from tests.control.conftest import RunningSidecar, exchange
from tests.launching import PYSIDECAR
from tests.waiting import PATIENCE, eventually


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run(
    *arguments: str | Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYSIDECAR, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.parametrize(
    "command",
    [
        "",
        "run",
        "exec",
        "check",
        "hook-path",
        "connections",
        "services",
        "requests",
        "rules",
        "rules apply",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    result = invoke(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output


def test_version_and_module() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("pysidecar ")


def test_hook_path_is_a_file() -> None:
    result = invoke("hook-path")
    assert result.output == f"{hook_path()}\n"
    assert Path(result.output.strip()).is_file()


def test_check_says_ok(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("drain_timeout: 5s\n")
    result = invoke("check", "-c", file)
    assert (result.exit_code, result.output) == (0, "OK\n")


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("drain_timeout: 5\nworker: 3\n")
    result = invoke("check", "-c", file)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{file}:1: drain_timeout: 5: expected a duration such as 500ms, 5s, 10m or 1h",
        f"{file}:2: worker: unknown key; did you mean workers?",
    ]


def test_check_finds_rules_that_do_not_fit_the_page(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    networks = ", ".join(f"10.{i >> 8}.{i & 255}.0/25" for i in range(20_000))
    file.write_text(f"outbound: {{exclude: [{networks}]}}\n")
    result = invoke("check", "-c", file)
    assert result.exit_code == 1
    assert "outbound.exclude: expected fewer networks" in result.stderr


def test_check_says_that_a_header_leaves_nothing_direct(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    for transport, warning in (("unix", ""), ("header", "routes with action direct relay")):
        file.write_text(f"outbound: {{transport: {transport}, routes: [{{action: direct}}]}}\n")
        result = invoke("check", "-c", file)
        assert (result.exit_code, result.stdout) == (0, "OK\n")
        assert warning in result.stderr
        assert bool(warning) == bool(result.stderr)


def test_check_prints_the_schema_and_the_defaults(tmp_path: Path) -> None:
    assert json.loads(invoke("check", "--schema").output)["title"] == "Config"
    file = tmp_path / "printed.yaml"
    file.write_text(invoke("check", "--print").output)
    assert invoke("check", "-c", file).output == "OK\n"


def test_check_without_a_file_is_a_usage_error() -> None:
    assert invoke("check").exit_code == 2


def away(tmp_path: Path, when_away: str = "refuse") -> Path:
    file = tmp_path / "away.yaml"
    file.write_text(
        f"outbound: {{control_socket: {tmp_path}/none/hook.sock, when_away: '{when_away}'}}\n"
    )
    return file


def test_exec_is_replaced_by_the_command(tmp_path: Path) -> None:
    done = run("exec", "-c", away(tmp_path), "--", "sh", "-c", "echo $0 $LD_PRELOAD; kill -9 $$")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == f"sh {hook_path()}\n"


def test_exec_passes_options_to_the_command(tmp_path: Path) -> None:
    done = run("exec", "-c", away(tmp_path), "echo", "--help", "-c")
    assert done.stdout == "--help -c\n"


@pytest.mark.parametrize(
    ("takeover", "own", "registered"),
    [
        ("", {}, ":"),
        ("takeover: {advertise: 10.1.2.3}", {}, "10.1.2.3:20881"),
        ("takeover: {provider: '10.1.2.4:9'}", {}, "10.1.2.4:9"),
        ("takeover: {advertise: 127.0.0.1}", {}, ":"),  # with which Dubbo would not start
        ("takeover: {advertise: 10.1.2.3}", {"DUBBO_PORT_TO_REGISTRY": "7"}, "10.1.2.3:7"),
    ],
)
def test_exec_has_dubbo_register_the_sidecar(
    tmp_path: Path, takeover: str, own: dict[str, str], registered: str
) -> None:
    config = away(tmp_path)
    config.write_text(config.read_text() + takeover)
    command = ("sh", "-c", "echo $DUBBO_IP_TO_REGISTRY:$DUBBO_PORT_TO_REGISTRY")
    done = run("exec", "-c", config, "--", *command, environment=own)
    assert done.stdout == f"{registered}\n"


@pytest.mark.parametrize(
    ("when_away", "effect"),
    [
        ("refuse", "connections fail with ECONNREFUSED"),
        ("direct", "connections go directly to their destination"),
        ("wait:3s", "connections wait for one (wait:3s)"),
    ],
)
def test_exec_says_when_no_sidecar_serves(tmp_path: Path, when_away: str, effect: str) -> None:
    done = run("exec", "-c", away(tmp_path, when_away), "--", "true")
    assert done.returncode == 0
    assert f"no sidecar serves here ({tmp_path}/none/hook.policy does not exist)" in done.stderr
    assert effect in done.stderr


def test_exec_notices_a_dead_sidecar(sidecar: RunningSidecar) -> None:
    sidecar.kill()

    def warning() -> str:
        done = run("exec", "-c", sidecar.config_file, "--", "true")
        return done.stderr

    assert "no sign of life" in eventually(warning)


def test_exec_says_when_others_can_write_the_page(sidecar: RunningSidecar) -> None:
    page = sidecar.control_socket.with_name("hook.policy")
    page.chmod(0o664)
    done = run("exec", "-c", sidecar.config_file, "--", "true")
    assert f"{page} can be written by others than its owner" in done.stderr


def test_exec_warns_of_what_it_cannot_reach(tmp_path: Path) -> None:
    program = tmp_path / "program"
    source = b"int main(void) { return 5; }"
    subprocess.run(["gcc", "-static", "-x", "c", "-", "-o", program], input=source, check=True)
    done = run("exec", "-c", away(tmp_path), "--", program)
    assert done.returncode == 5
    assert f"pysidecar: {program} is statically linked" in done.stderr


def test_exec_ends_like_a_shell_when_there_is_no_command(tmp_path: Path) -> None:
    done = run("exec", "-c", away(tmp_path), "--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command: command not found" in done.stderr
    done = run("exec", "-c", away(tmp_path), "--", tmp_path)
    assert done.returncode == 126


def test_run_explains_itself(sidecar: RunningSidecar) -> None:
    assert f"LD_PRELOAD={hook_path()} ./app" in sidecar.log
    assert f"pysidecar exec -c {sidecar.config_file} -- ./app" in sidecar.log


def test_run_with_the_defaults_finds_its_place(tmp_path: Path) -> None:
    """Where the default ports are free; otherwise it says who has them."""
    done = subprocess.Popen(
        [*PYSIDECAR, "run"],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with done:
        assert done.stderr is not None
        first = done.stderr.readline()
        done.terminate()
        rest = done.stderr.read()
    if done.returncode == 0:
        assert f"hooked connections: {tmp_path}/pysidecar/hook.sock" in first + rest
    else:
        assert "in use by" in first
    assert list((tmp_path / "pysidecar").iterdir()) == []


def test_connections_in_a_pipe_are_lines(sidecar: RunningSidecar, echo: Address) -> None:
    with sidecar.connect(echo) as client:
        exchange(client, b"x" * 2048)
        done = run("connections", "--admin", str(sidecar.admin))
        listed = json.loads(run("connections", "--json", "--admin", str(sidecar.admin)).stdout)
    head, line = done.stdout.splitlines()
    row = dict(zip(head.split("\t"), line.split("\t"), strict=True))
    assert (row["state"], row["destination"]) == ("open", str(echo))
    assert (row["sent"], row["received"]) == ("2.0 KiB", "2.0 KiB")
    assert listed[0]["bytes_sent"] == 2048


def test_connections_on_a_terminal_are_a_live_table(sidecar: RunningSidecar, echo: Address) -> None:
    ours, theirs = pty.openpty()
    with sidecar.connect(echo) as client:
        exchange(client, b"x")
        arguments = ["connections", "--watch", "--interval", "0.1", "--admin", str(sidecar.admin)]
        watch = subprocess.Popen(
            # A shell in the background runs its commands with SIGINT ignored, which is inherited.
            ["env", "--default-signal=INT", *PYSIDECAR, *arguments],
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
        )
        os.close(theirs)
        shown = b""  # which may end within a character
        while shown.count(b"1 open connections") < 2:
            shown += os.read(ours, 65536)
        assert str(echo).encode() in shown
        watch.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while os.read(ours, 65536):  # what is not read holds the writer up
                pass
        assert watch.wait(PATIENCE) == 0
    os.close(ours)


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\u202e", "\u2066", "\x7f", "\n", "\u200f"])
def test_what_a_process_calls_itself_does_not_move_a_terminal(character: str) -> None:
    assert printable(f"a{character}é") == "a\ufffdé"


def test_connections_without_a_sidecar_says_so() -> None:
    done = run("connections", "--admin", "127.0.0.1:1")
    assert done.returncode == 1
    assert "no sidecar answers at http://127.0.0.1:1/" in done.stderr


def test_connections_ends_with_its_reader(sidecar: RunningSidecar) -> None:
    watch = subprocess.Popen(
        [*PYSIDECAR, "connections", "--watch", "--interval", "0.1", "--admin", str(sidecar.admin)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watch.stdout is not None
    assert watch.stderr is not None
    with watch:
        watch.stdout.readline()
        watch.stdout.close()
        assert watch.wait(PATIENCE) == 0
        assert watch.stderr.read() == b""


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "250ms"), (12.34, "12.3s"), (303, "5m03s"), (7500, "2h05m")]
)
def test_ages_for_people(seconds: float, text: str) -> None:
    assert format_age(seconds) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(None, "-"), (0.254, "0.25ms"), (2.54, "2.5ms"), (254.4, "254ms"), (2540, "2.5s")],
)
def test_durations_for_people(milliseconds: float | None, text: str) -> None:
    assert format_ms(milliseconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (0.254, "0.25"), (7, "7"), (12.3, "12"), (56000, "56,000")]
)
def test_counts_for_people(count: float, text: str) -> None:
    assert format_count(count) == text


def test_rules_show_what_a_configuration_asks_for(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("inbound: {ports: 8080}\noutbound: {redirect: true}\n")
    both = invoke("rules", "show", "-c", file).output
    assert "tcp dport != { 8080 } return" in both
    assert "redirect to :15002" in both
    inbound = invoke("rules", "show", "-c", file, "--mode", "tproxy").output
    outbound = invoke("rules", "show", "-c", file, "--mode", "redirect").output
    assert both == inbound + outbound
    assert inbound
    assert outbound
    backend = invoke("rules", "show", "-c", file, "--backend", "iptables").output
    assert "-j TPROXY --on-port 15006" in backend
    file.write_text("inbound: {ports: 8080}\nrules_backend: iptables\n")
    assert "-j TPROXY --on-port 15006" in invoke("rules", "show", "-c", file).output


def test_rules_say_what_is_missing(tmp_path: Path) -> None:
    result = invoke("rules", "show")
    assert result.exit_code == 2
    assert "expected -c FILE, or --mode" in result.output
    file = tmp_path / "f.yaml"
    file.write_text("inbound: {mode: redirect}\n")
    result = invoke("rules", "show", "-c", file, "--mode", "tproxy")
    assert result.exit_code == 1
    assert "needs no rules of mode tproxy: expected inbound: {mode: tproxy}" in result.output
    result = invoke("rules", "apply", "--mode", "tproxy", "--netns", "nobody-has-this")
    assert result.exit_code == 1
    assert "cannot open the network namespace nobody-has-this" in result.output
