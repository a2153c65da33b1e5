"""Reading a configuration file, and saying what is wrong with it: everything at once, each problem
with its line, key, value and what was expected."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from pysidecar.config.schema import Config, section_of

__all__ = ["ConfigError", "Problem", "load", "parse"]

_MAX_BYTES = 16 << 20  # 10,000 routes take about 1 MiB
_MAX_SHOWN = 60  # characters of a value in a message

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct. ``line`` counts from 1; None where it is unknown."""

    key: str
    message: str
    line: int | None = None


class ConfigError(Exception):
    """Why a configuration cannot be used; its text is ready to be shown."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        super().__init__("\n".join(self._lines()))

    def _lines(self) -> Iterator[str]:
        for problem in self.problems:
            place = self.source if problem.line is None else f"{self.source}:{problem.line}"
            yield (
                f"{place}: {problem.key}: {problem.message}"
                if problem.key
                else (f"{place}: {problem.message}")
            )


def load(path: Path | None) -> Config:
    """Reads a file; without one, the embedded defaults. Raises ConfigError."""
    if path is None:
        return Config()
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(path), [Problem("", f"cannot be read: {error.strerror}")]) from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(
            str(path), [Problem("", f"expected a file of at most {_MAX_BYTES >> 20} MiB")]
        )
    return parse(data, source=str(path))


def parse(data: bytes | str, *, source: str = "configuration") -> Config:
    """Reads YAML. ``source`` stands before every error. Raises ConfigError."""
    plain, lines, problems = _read_yaml(data, source)
    if plain is not None and not isinstance(plain, dict):
        raise ConfigError(source, [Problem("", "expected keys such as outbound: at the top", 1)])
    try:
        config = Config.model_validate(plain if plain is not None else {})
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["type"] == "too_short" and detail["input"]:
                continue  # its entries are there, and reported by themselves
            problems.append(_problem(detail, plain, lines))
    if problems:
        raise ConfigError(source, problems)
    return config


# ---- YAML ----


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain values as in YAML 1.2: only ``true`` and ``false`` are booleans, and a leading zero or
    a colon makes a text and not a number (1.1 reads 0600 as octal and 10:20 as base 60)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"null|Null|NULL|~|$"), None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|false"), None)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"-?(?:0|[1-9][0-9]*)$"), None)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+$"), None
)


def _read_yaml(data: bytes | str, source: str) -> tuple[Any, dict[KeyPath, int], list[Problem]]:
    """The plain values, the line of each key, and what YAML itself lets pass: duplicate keys."""
    try:
        loader = _Loader(data)
        try:
            root = loader.get_single_node()
            lines: dict[KeyPath, int] = {}
            problems: list[Problem] = []
            if root is not None:
                _index(root, (), lines, problems, set())
            plain = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        text = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(
            source, [Problem("", f"not YAML: {text}", mark.line + 1 if mark else None)]
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(
            source, [Problem("", f"not YAML: {' '.join(str(error).split())}")]
        ) from None
    return plain, lines, problems


def _index(
    node: yaml.Node,
    path: KeyPath,
    lines: dict[KeyPath, int],
    problems: list[Problem],
    seen: set[int],
) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in seen:  # an alias: its lines are where it was first written
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*path, index), lines, problems, seen)
    elif isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in first_lines:
                problems.append(
                    Problem(
                        _spell((*path, name)),
                        f"expected each key once; it is in line {first_lines[name]} already",
                        line,
                    )
                )
            first_lines.setdefault(name, line)
            lines[(*path, name)] = line
            _index(value, (*path, name), lines, problems, seen)


# ---- What the schema found, in our words ----


def _spell(path: KeyPath) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _problem(detail: Any, plain: Any, lines: dict[KeyPath, int]) -> Problem:
    path = _written_path(detail["loc"], plain, keep_last=detail["type"] == "missing")
    line = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)
    return Problem(_spell(path), _message(detail, path), line)


def _written_path(loc: tuple[str | int, ...], plain: Any, *, keep_last: bool) -> KeyPath:
    """The part of a location that the file has: a single value that stands for a list, and the
    names of alternatives, are the schema's own."""
    path: KeyPath = ()
    at = plain
    for part in loc:
        if isinstance(part, int):
            written = isinstance(at, list) and part < len(at)
        else:
            written = isinstance(at, dict) and part in at
        if written:
            at = at[part]
        elif keep_last and isinstance(at, dict):
            return (*path, part)
        else:
            break
        path = (*path, part)
    return path


def _message(detail: Any, path: KeyPath) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(path)}"
    if kind == "missing":
        return "expected this key, which has no default"
    if kind == "value_error":
        expected = str(context["error"])
        if isinstance(value, dict | BaseModel):  # about a whole section: the text says it all
            return expected
    elif kind == "literal_error":
        expected = f"expected {context['expected']}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        expected = f"expected keys below it{_known(path)}"
    elif kind in ("tuple_type", "list_type"):
        expected = "expected a list"
    elif kind == "bool_type":
        expected = "expected true or false"
    elif kind == "too_short":
        expected = "expected at least one entry"
    elif kind == "too_long":
        expected = f"expected at most {context['max_length']} entries"
    else:
        text = re.sub(r"^Input should be ", "expected ", detail["msg"])
        expected = re.sub("^expected a valid ", "expected a whole ", text).replace(
            "whole integer", "whole number"
        )
    shown = repr(value)
    if len(shown) > _MAX_SHOWN:
        shown = shown[: _MAX_SHOWN - 1] + "…"
    return f"{shown}: {expected}"


def _section(path: KeyPath) -> type[BaseModel] | None:
    section: type[BaseModel] | None = Config
    for part in path:
        if isinstance(part, str) and section is not None:
            field = section.model_fields.get(part)
            section = section_of(field.annotation) if field else None
    return section


def _suggestion(path: KeyPath) -> str:
    parent = _section(path[:-1])
    known = list(parent.model_fields) if parent else []
    close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; expected one of {', '.join(known)}"


def _known(path: KeyPath) -> str:
    section = _section(path)
    return f": {', '.join(section.model_fields)}" if section else ""
