"""``pysidecar rules``: what the configuration asks for in the kernel."""

from __future__ import annotations

from collections.abc import Sequence

from pysidecar.config import Config
from pysidecar.errors import StartError
from pysidecar.interception import rules
from pysidecar.interception.kernel import interceptions
from pysidecar.interception.rules import Ruleset
from pysidecar.modes import INBOUND, OUTBOUND

__all__ = ["apply_all", "chosen_rules"]


def chosen_rules(config: Config, mode: str | None, netns: str | None) -> list[Ruleset]:
    """Those that a configuration asks for, or only those of a mode. Raises StartError when there
    are none."""
    found = interceptions(config, netns)
    chosen = [each.ruleset for each in found if mode in (None, each.name)]
    if not chosen:
        raise StartError(
            f"the configuration needs no rules{_of(mode)}: expected {_what_needs(mode)}"
        )
    return chosen


def _what_needs(mode: str | None) -> str:
    if mode is None:
        return "a section inbound, or outbound: {redirect: true}"
    sections = [f"inbound: {{mode: {mode}}}"] if mode in INBOUND else []
    sections += [f"outbound: {{{mode}: true}}"] if mode in OUTBOUND else []
    return " or ".join(sections)


def _of(mode: str | None) -> str:
    return f" of mode {mode}" if mode else ""


def apply_all(
    wanted: Sequence[Ruleset], backend: str, netns: str | None
) -> list[tuple[Ruleset, bool]]:
    """Applies all or none, and says which ones were not in force already. Raises StartError."""
    found = {problem for ruleset in wanted for problem in rules.problems(ruleset, backend, netns)}
    if found:
        raise StartError(f"cannot apply the rules: {'; '.join(sorted(found))}")
    done: list[tuple[Ruleset, bool]] = []
    try:
        for ruleset in wanted:
            done.append((ruleset, rules.apply(ruleset, backend, netns)))
    except BaseException:
        rules.delete([ruleset.direction for ruleset, changed in done if changed], netns)
        raise
    return done
