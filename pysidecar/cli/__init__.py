"""The command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from pysidecar import hook_path
from pysidecar.address import Address
from pysidecar.config import Config, ConfigError, json_schema, load
from pysidecar.direction import Direction
from pysidecar.errors import StartError
from pysidecar.modes import INBOUND, OUTBOUND
from pysidecar.selection import FILTERS, LISTS, REQUEST_FILTERS, STATES, Filter

__all__ = ["main"]

# What only some commands need (the data plane, aiohttp, rich) they import themselves, so that the
# others answer at once.

_NOT_FOUND = 127  # exit statuses of a shell for a command that cannot be run
_NOT_EXECUTABLE = 126
_WATCHED = 100  # requests: more than a terminal has lines


class _Paragraphs(click.Group):
    """Help with the commands in the order of their first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


_config_option = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="Configuration (YAML). Without it, the embedded defaults.",
)


@click.group(cls=_Paragraphs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pysidecar", message="%(prog)s %(version)s")
def main() -> None:
    """Gets an application's traffic through its sidecar, without changing the application.

    \b
    Terminal 1:  pysidecar run
    Terminal 2:  pysidecar exec -- curl http://example.com/
                 pysidecar connections
    """


@main.command()
@_config_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.option(
    "--until-stdin-ends",
    is_flag=True,
    help="Drain, as at SIGTERM, when standard input ends: for programs that start a sidecar, "
    "which then does not outlive them, however they end.",
)
def run(config_file: Path | None, verbose: bool, until_stdin_ends: bool) -> None:
    """Run a sidecar in the foreground.

    It logs on standard error and writes the access log where the configuration says, by default to
    standard output.

    \b
    SIGHUP            reloads the file; open connections go on
    SIGTERM, SIGINT   drains: no new connections, the open ones may finish; once more aborts them
    """
    hangups: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: hangups.append(number))  # until the loop runs
    from pysidecar.background import spare_collections, without_collector
    from pysidecar.log import non_blocking_log, start_writing
    from pysidecar.privileges import keep_only, needed_capabilities
    from pysidecar.sidecar import Sidecar, prepare_process

    spare_collections()
    with without_collector():
        config = _load(config_file)
    prepare_process(config)

    def settle() -> None:
        keep_only(needed_capabilities(config))
        start_writing()

    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        with (
            non_blocking_log(logging.DEBUG if verbose else logging.INFO),
            asyncio.Runner(loop_factory=_loop_factory()) as runner,
        ):
            sidecar = Sidecar(config, source=config_file, settle=settle)
            runner.run(
                sidecar.run(until_stdin_ends=until_stdin_ends, reload_wanted=lambda: bool(hangups))
            )
    except (StartError, ConfigError) as error:
        _fail(str(error))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@main.command(
    "exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False}
)
@_config_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(config_file: Path | None, command: tuple[str, ...]) -> None:
    """Run a command whose outbound connections go through the sidecar.

    The command takes this process's place: signals and the exit status are its own. With the
    sidecar's configuration file it finds that sidecar; without one, the default sidecar.

    Where the configuration has a section takeover, a Dubbo provider registers the sidecar's address
    instead of its own: by DUBBO_IP_TO_REGISTRY and DUBBO_PORT_TO_REGISTRY, unless they are set.

    \b
    pysidecar exec -- curl http://example.com/
    pysidecar exec -c sidecar.yaml -- psql -h db
    """
    from pysidecar.interception.policy_page import page_path
    from pysidecar.interception.preload import hooked_environment, unreachable_because

    config = _load(config_file)
    hook = hook_path()
    if not hook.is_file():
        _fail(f"{hook} is missing: pysidecar is not installed completely")
    policy = page_path(config.outbound.control_path)
    _warn_unless_serving(config, policy)
    try:
        environment = hooked_environment(
            {**_takeover_environment(config), **os.environ},
            hook=hook,
            policy=policy,
            when_away=config.outbound.when_away,
            awaited=_awaited(config),
        )
    except ValueError as error:
        _fail(str(error))
    asan_options = os.environ.get("ASAN_OPTIONS", "")
    for reason in unreachable_because(command[0], hook=hook, asan_options=asan_options):
        _warn(reason)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        _fail(f"{command[0]}: command not found", status=_NOT_FOUND)
    except OSError as error:
        _fail(f"{command[0]}: {error.strerror}", status=_NOT_EXECUTABLE)


def _awaited(config: Config) -> list[int]:
    """Where an application says once what it provides and wants, and never again."""
    if config.takeover is None:
        return []
    apis = (config.takeover.api, config.takeover.dubbo_api)
    return [address.port for address in apis if address is not None]


def _takeover_environment(config: Config) -> dict[str, str]:
    if config.takeover is None:
        return {}
    from pysidecar.takeover.advertised import advertised, dubbo_environment

    settings = config.takeover
    return dubbo_environment(
        advertised(settings.advertise, settings.provider, config.registry.address)
    )


def _warn_unless_serving(config: Config, policy: Path) -> None:
    from pysidecar.interception.policy_page import State, read_page

    status = read_page(policy)
    if status is not None and status.serving:
        return
    if status is None:
        what = f"no sidecar serves here ({_unreadable(policy)})"
    elif status.state is not State.SERVING:
        what = f"the sidecar of {policy} is {status.state.name.lower()}"
    else:
        what = f"the sidecar of {policy} has shown no sign of life for {status.silent_for:.0f} s"
    when_away = status.when_away if status else config.outbound.when_away
    effect = {
        "refuse": "until one does, connections fail with ECONNREFUSED",
        "direct": "until one does, connections go directly to their destination",
        "wait": f"connections wait for one ({when_away})",
    }[when_away.mode]
    _warn(f"{what}; start one with: pysidecar run. As when_away is {when_away}, {effect}")


def _unreadable(policy: Path) -> str:
    from pysidecar.interception.policy_page import others_can_write

    try:
        with policy.open("rb") as file:
            if others_can_write(os.fstat(file.fileno())):
                return f"{policy} can be written by others than its owner, so no hook follows it"
            return f"{policy} is not a policy page of this version"
    except FileNotFoundError:
        return f"{policy} does not exist"
    except OSError as error:
        return f"{policy}: {error.strerror}"


@main.command()
@_config_option
@click.option(
    "--schema", is_flag=True, help="Print the JSON schema, for editors, and nothing else."
)
@click.option("--print", "show", is_flag=True, help="Print the configuration with all defaults.")
def check(config_file: Path | None, schema: bool, show: bool) -> None:
    """Validate a configuration file.

    Prints OK, or every error with its line, key, value and what was expected (exit status 1).
    """
    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
        return
    from pysidecar.interception.hook import ConnectHook

    if config_file is None and not show:
        raise click.UsageError("expected -c FILE, the file to validate")
    config = _load(config_file)
    try:
        ConnectHook(config).check(config)
    except ValueError as error:
        _fail(f"{config_file or 'configuration'}: {error}")
    if config.outbound.direct_routes and config.outbound.transport == "header":
        _warn("routes with action direct relay, as outbound.transport is header")
    if show:
        import yaml

        click.echo(yaml.safe_dump(config.to_plain(), sort_keys=False), nl=False)
    else:
        click.echo("OK")


@main.command("hook-path")
def print_hook_path() -> None:
    """Print the path of libmosnhook.so.

    \b
    LD_PRELOAD=$(pysidecar hook-path) ./app
    """
    click.echo(hook_path())


class _FilterOption(click.Option):
    """Asks the data plane for the names that there are: so only when it is needed."""

    def __init__(self, declarations: Sequence[str], *, chosen: Filter, **attributes: Any) -> None:
        super().__init__(declarations, multiple=True, help=chosen.help, **attributes)
        self._filter = chosen

    def make_metavar(self, *_: Any, **__: Any) -> str:
        return self._filter.metavar()

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        values: tuple[str, ...] = super().process_value(ctx, value)
        for each in values:
            try:
                self._filter.parse(each)
            except ValueError as error:
                raise click.BadParameter(str(error), ctx, self) from None
        return values


_Command = TypeVar("_Command", bound=Callable[..., Any])


def _filter_options(filters: Sequence[Filter], *keys: str) -> Callable[[_Command], _Command]:
    """An option for each filter, or for some of them, in their order."""

    def add(command: _Command) -> _Command:
        for each in reversed(filters):
            if not keys or each.key in keys:
                command = click.option(f"--{each.key}", cls=_FilterOption, chosen=each)(command)
        return command

    return add


_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON as the admin API gives it."
)
_admin_option = click.option(
    "--admin", metavar="ADDRESS:PORT", help="Admin interface, if not the configured one."
)


_watch_option = click.option("-w", "--watch", is_flag=True, help="Refresh until interrupted.")
_interval_option = click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)


@main.command()
@_config_option
@_watch_option
@_interval_option
@click.option(
    "--closed",
    type=click.IntRange(0, 1000),
    metavar="N",
    help="Also show the N latest connections that closed, as far as they fit.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Show at most N connections.")
@click.option(
    "--state",
    type=click.Choice(STATES),
    help="Show only these. Without --closed, closed is the latest 1,000.",
)
@_filter_options(FILTERS)
@_json_option
@_admin_option
def connections(
    config_file: Path | None,
    watch: bool,
    interval: float,
    as_json: bool,
    admin: str | None,
    **selection: Any,
) -> None:
    """Show the connections of a running sidecar.

    A table on a terminal, plain lines in a pipe. Options that choose connections are combined: all
    of them have to fit; of one that is given more than once, any.

    \b
    pysidecar connections --watch
    pysidecar connections --process psql --destination 10.0.0.0/8
    pysidecar connections --destination :5432 --destination :5433 --limit 20
    pysidecar connections --state closed --upstream 10.0.0.9 --json

    \b
    The admin API takes the same names as parameters:
    curl 'http://127.0.0.1:15000/connections?uid=33&limit=20&format=ndjson'
    """
    from pysidecar.cli.connections import CONNECTIONS
    from pysidecar.cli.views import show

    with _showing():
        show(
            _admin_address(admin, config_file),
            CONNECTIONS,
            _parameters(selection),
            as_json=as_json,
            interval=interval if watch else None,
        )


@main.command()
@_config_option
@_watch_option
@_interval_option
@click.option(
    "--service", multiple=True, metavar="NAME", help="Only this service; may be given repeatedly."
)
@_json_option
@_admin_option
def services(
    config_file: Path | None,
    watch: bool,
    interval: float,
    as_json: bool,
    admin: str | None,
    **selection: Any,
) -> None:
    """Show the services of a running sidecar, and how they do.

    A table on a terminal, plain lines in a pipe: a row for each service, in which all of its
    endpoints are counted, and one for each endpoint.

    \b
    role         configured; or of takeover: subscribed, as applications here call it, or published,
                 as they provide it
    weight       an endpoint's share of the requests, beside the others' weights
    state        an endpoint is ejected after a connect that failed: it gets no request for now;
                 of what is published, whether the registry has it, or why not
    requests     that ended since the sidecar started; of an endpoint, since the service has it
    failures     of these: timeouts, resets, 5xx, exceptions, no endpoint, ... (--json: flags)
    rate         requests a second in the last minute
    p50, p99     half of the requests, and 99 of 100, took no longer; of the last minute, estimated
    connections  upstream connections that are open
    active       requests that are under way
    pending      requests that wait for an upstream connection
    retrying     requests that are sent again, or wait for that

    \b
    pysidecar services --watch
    pysidecar services --service orders --json

    \b
    The admin API: curl 'http://127.0.0.1:15000/services?service=orders'
    """
    from pysidecar.cli.services import SERVICES
    from pysidecar.cli.views import show

    with _showing():
        show(
            _admin_address(admin, config_file),
            SERVICES,
            _parameters(selection),
            as_json=as_json,
            interval=interval if watch else None,
        )


@main.command()
@_config_option
@_watch_option
@_interval_option
@click.option(
    "--list",
    type=click.Choice(LISTS),
    default=LISTS[0],
    show_default=True,
    help="The latest that ended, the latest of those that failed, or the slowest of the last five "
    "minutes; at most 1,000.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Show at most N requests; with --watch, 100 unless it is given.",
)
@_filter_options(REQUEST_FILTERS)
@_json_option
@_admin_option
def requests(
    config_file: Path | None,
    watch: bool,
    interval: float,
    as_json: bool,
    admin: str | None,
    **selection: Any,
) -> None:
    """Show requests that a running sidecar has passed on, or answered itself.

    A table on a terminal, plain lines in a pipe; with --watch as many rows as the terminal has
    room for. Options that choose requests are combined: all of them have to fit; of one that is
    given more than once, any. They choose among the 1,000 latest requests, or with --list among
    those that failed, of which some are kept when many others have ended since (255 of each
    worker), or among the slowest of the last five minutes (32 of each worker and minute).

    The path of HTTP requests is shown without its query, unless the configuration says
    access_log: {query: true}. docs/requests.md says what the columns and the flags mean.

    \b
    pysidecar requests --watch
    pysidecar requests --watch --list failed
    pysidecar requests --service orders --status 5xx --limit 20
    pysidecar requests --list slowest --path /v2/ --slower 100ms --json

    \b
    The admin API takes the same names as parameters:
    curl 'http://127.0.0.1:15000/requests?service=orders&status=5xx&format=ndjson'
    """
    from pysidecar.cli.requests import REQUESTS
    from pysidecar.cli.views import show

    if watch:
        selection["limit"] = selection["limit"] or _WATCHED
    with _showing():
        show(
            _admin_address(admin, config_file),
            REQUESTS,
            _parameters(selection),
            as_json=as_json,
            interval=interval if watch else None,
        )


def _admin_address(admin: str | None, config_file: Path | None) -> Address:
    from pysidecar.config.values import parse_endpoint

    try:
        return parse_endpoint(admin) if admin else _load(config_file).admin.listen
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--admin") from None


@contextlib.contextmanager
def _showing() -> Iterator[None]:
    """What a sidecar says is printed, until somebody has seen enough."""
    from pysidecar.cli.admin import AdminError

    try:
        yield
    except AdminError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader of the pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parameters(selection: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Of the admin API; None stands for an option that was not given."""
    return [
        (key, str(value))
        for key, given in selection.items()
        for value in (given if isinstance(given, tuple) else (given,))
        if value is not None
    ]


@main.group("debug", cls=_Paragraphs)
def debug_group() -> None:
    """Look into a running sidecar.

    \b
    pysidecar debug trace --process psql
    """


@debug_group.command("trace")
@_config_option
@click.option(
    "--session",
    type=click.IntRange(1),
    multiple=True,
    metavar="ID",
    help="Only this connection: its id in pysidecar connections.",
)
@_filter_options(FILTERS, "process", "pid", "destination")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Stop after that time. Without it: when interrupted.",
)
@_json_option
@_admin_option
def trace(config_file: Path | None, as_json: bool, admin: str | None, **selection: Any) -> None:
    """Show what happens to connections in a running sidecar, as it happens.

    A line for each station that a connection passes: accepted, route chosen, connecting to an
    endpoint and how that ended, completed or refused, first bytes each way, backpressure, resets,
    timers that expire, closed and why. Before it the time of day, the connection's id, and how long
    after its first line that is. docs/debugging.md lists the stations and what they say.

    Workers note this only while somebody looks, and never wait for it: lines that come faster than
    they are read are missing, and counted. No byte that a connection carries is shown. Options that
    choose connections are combined: all of them have to fit; of one that is given more than once,
    any. Lines that belong to no connection (new routes, a lack of descriptors) are shown without
    such options only.

    \b
    pysidecar debug trace --destination 10.0.0.9:5432
    pysidecar debug trace --process psql --seconds 10 --json
    pysidecar debug trace --session 4711

    \b
    The admin API takes the same names as parameters, and gives JSON objects, a line each:
    curl -N 'http://127.0.0.1:15000/debug/trace?process=psql&seconds=10'
    """
    from pysidecar.cli.trace import show_trace

    with _showing():
        show_trace(_admin_address(admin, config_file), _parameters(selection), as_json=as_json)


@main.command("registry")
@click.option(
    "--listen",
    metavar="ADDRESS:PORT",
    help="Where sidecars find it.  [default: 127.0.0.1:15010]",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file (SQLite) by which it remembers what was registered when it starts again. "
    "Default: registry-PORT.sqlite beside the control socket of a sidecar without configuration.",
)
@click.option(
    "--list",
    "listed",
    metavar="ADDRESS:PORT",
    help="Print what is in the registry there, and nothing else.",
)
@click.option("--json", "as_json", is_flag=True, help="With --list: as JSON.")
def run_registry(listen: str | None, state: Path | None, listed: str | None, as_json: bool) -> None:
    """Run the embedded registry in the foreground, or show what is in one.

    For one machine, and for trying out: it is a single process, and whoever reaches it may register
    and remove services, as there is no authentication. So it listens on loopback unless --listen
    says otherwise; from another address on, keep it in a network that you trust. For everything
    larger there are sofaregistry, zookeeper and etcd: docs/takeover.md.

    \b
    Terminal 1:  pysidecar registry
    sidecar.yaml:  registry: {type: embedded, address: 127.0.0.1:15010}
    Terminal 2:  pysidecar registry --list 127.0.0.1:15010

    What a sidecar registers is there for as long as the sidecar is, and registry.session_timeout
    longer. A registry that starts again remembers it (--state), and sidecars that were connected
    come back by themselves within seconds; calls between them go on meanwhile.

    \b
    SIGTERM, SIGINT   ends it; what is registered is remembered
    """
    from pysidecar.config.values import parse_endpoint

    where = listed or listen or "127.0.0.1:15010"
    if listed and (listen or state):
        raise click.UsageError("expected --list alone, or --listen and --state")
    if as_json and not listed:
        raise click.UsageError("expected --json with --list only")
    try:
        address = parse_endpoint(where)
    except ValueError as error:
        hint = "--list" if listed else "--listen"
        raise click.BadParameter(str(error), param_hint=hint) from None
    if listed:
        _list_registry(address, as_json)
    else:
        _serve_registry(address, state)


def _list_registry(address: Address, as_json: bool) -> None:
    from pysidecar.cli.registry import list_registry

    with _showing():
        list_registry(address, as_json=as_json)


def _serve_registry(address: Address, state: Path | None) -> None:
    from pysidecar.log import non_blocking_log
    from pysidecar.registry.embedded.serving import serve

    logging.getLogger("asyncio").setLevel(logging.WARNING)
    with (
        _start_errors(),
        non_blocking_log(logging.INFO),
        asyncio.Runner(loop_factory=_loop_factory()) as runner,
    ):
        runner.run(serve(address, state))


@main.group("rules", cls=_Paragraphs)
def rules_group() -> None:
    """Show, apply or delete the rules in the kernel for inbound and outbound.redirect.

    The configuration says which; --mode restricts it to one kind. Without a configuration file,
    --mode tproxy means all inbound connections, and --mode redirect all of both directions.

    \b
    pysidecar rules show -c sidecar.yaml
    pysidecar rules apply -c sidecar.yaml --netns pod1
    pysidecar rules delete
    """


_mode_option = click.option(
    "--mode",
    type=click.Choice(list(dict.fromkeys([*INBOUND, *OUTBOUND]))),
    help="Only rules of this kind.",
)
_netns_option = click.option(
    "--netns",
    metavar="NAME",
    help="Network namespace: a name of ip-netns, or a path such as /proc/PID/ns/net. Default: this "
    "one.",
)
_backend_option = click.option(
    "--backend",
    type=click.Choice(["nft", "iptables", "iptables-nft", "iptables-legacy"]),
    help="Default: rules_backend of the configuration.",
)


@rules_group.command("show")
@_config_option
@_mode_option
@_netns_option
@_backend_option
def show_rules(
    config_file: Path | None, mode: str | None, netns: str | None, backend: str | None
) -> None:
    """Print exactly what apply would send to the kernel's tools. Changes nothing."""
    from pysidecar.cli.rules import chosen_rules
    from pysidecar.interception import rules

    config = _load_or_mode(config_file, mode)
    with _start_errors():
        for ruleset in chosen_rules(config, mode, netns):
            click.echo(rules.show(ruleset, backend or config.rules_backend), nl=False)


@rules_group.command("apply")
@_config_option
@_mode_option
@_netns_option
@_backend_option
def apply_rules(
    config_file: Path | None, mode: str | None, netns: str | None, backend: str | None
) -> None:
    """Bring the rules into force, all or none. Applying them again changes nothing."""
    from pysidecar.cli.rules import apply_all, chosen_rules

    config = _load_or_mode(config_file, mode)
    with _start_errors():
        wanted = chosen_rules(config, mode, netns)
        for ruleset, changed in apply_all(wanted, backend or config.rules_backend, netns):
            state = "applied" if changed else "in force already"
            click.echo(f"{ruleset.direction.word} rules: {state}")


@rules_group.command("delete")
@_config_option
@_mode_option
@_netns_option
@_backend_option
def delete_rules(
    config_file: Path | None, mode: str | None, netns: str | None, backend: str | None
) -> None:
    """Remove what was applied, by whichever backend, and nothing else.

    Without a configuration file and --mode, all of it. Otherwise the directions that these have:
    tproxy is inbound, redirect is both.
    """
    from pysidecar.cli.rules import chosen_rules
    from pysidecar.interception import rules

    del backend  # accepted so that all three take the same options
    with _start_errors():
        directions = tuple(Direction)
        if config_file is not None or mode is not None:
            config = _load_or_mode(config_file, mode)
            directions = tuple(wanted.direction for wanted in chosen_rules(config, mode, netns))
        removed = rules.delete(directions, netns)
        click.echo("rules: deleted" if removed else "rules: there were none")


def _load_or_mode(config_file: Path | None, mode: str | None) -> Config:
    if config_file is not None:
        return _load(config_file)
    if mode is None:
        raise click.UsageError("expected -c FILE, or --mode for the default rules of a kind")
    sections: dict[str, Any] = {"inbound": {"mode": mode}} if mode in INBOUND else {}
    if mode in OUTBOUND:
        sections["outbound"] = {mode: True}
    return Config.model_validate(sections)


@contextlib.contextmanager
def _start_errors() -> Iterator[None]:
    try:
        yield
    except StartError as error:
        _fail(str(error))


def _load(config_file: Path | None) -> Config:
    try:
        return load(config_file)
    except ConfigError as error:
        _fail(str(error))


def _warn(message: str) -> None:
    click.echo(f"pysidecar: {message}", err=True)


def _fail(message: str, *, status: int = 1) -> NoReturn:
    lines: Sequence[str] = message.splitlines()
    for line in lines:
        click.echo(f"pysidecar: {line}" if len(lines) == 1 else line, err=True)
    raise SystemExit(status)
