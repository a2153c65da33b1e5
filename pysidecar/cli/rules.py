"""``pysidecar rules``: what the configuration asks for in the kernel."""

from __future__ import annotations

from collections.abc import Sequence

from pysidecar.config import Config
from pysidecar.errors import StartError
from pysidecar.interception import rules
from pysidecar.interception.kernel import make_way
from pysidecar.interception.rules import Direction, Ruleset

__all__ = ["apply_all", "chosen_rules"]


def chosen_rules(config: Config, mode: str | None, netns: str | None) -> list[Ruleset]:
    """Those that a configuration asks for, or only those of a mode. Raises StartError when there
    are none."""
    ways = [way for direction in Direction if (way := make_way(config, direction, netns))]
    chosen = [way.rules for way in ways if mode in (None, way.name)]
    if not chosen:
        expected = {
            "tproxy": "inbound: {mode: tproxy}",
            "redirect": "inbound: {mode: redirect} or outbound: {redirect: true}",
            None: "a section inbound, or outbound: {redirect: true}",
        }[mode]
        raise StartError(f"the configuration needs no rules{_of(mode)}: expected {expected}")
    return chosen


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
