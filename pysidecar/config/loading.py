"""Reading a configuration file, and saying what is wrong with it: everything at once, each problem
with its line, key, value and what was expected."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pysidecar.config.references import misfits
from pysidecar.config.schema import Config, section_of

__all__ = ["ConfigError", "Problem", "load", "parse"]

_MAX_BYTES = 16 << 20  # 10,000 routes take about 1 MiB
_MAX_DEPTH = 32  # mappings and lists within each other
_MAX_VALUES = 1_000_000  # 50,000 routes have some 400,000
_MAX_ALIASED = 100_000  # of them that aliases may stand for
_MAX_SHOWN = 60  # characters of a value in a message
_MAX_PROBLEMS = 100  # that are shown

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 2 * _MAX_SHOWN
_repr = _short.repr  # whose cost has a limit, whatever the value

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
        for problem in self.problems[:_MAX_PROBLEMS]:
            place = self.source if problem.line is None else f"{self.source}:{problem.line}"
            yield (
                f"{place}: {problem.key}: {problem.message}"
                if problem.key
                else (f"{place}: {problem.message}")
            )
        if (more := len(self.problems) - _MAX_PROBLEMS) > 0:
            yield f"{self.source}: {more:,} more like these"


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
    plain, problems = _read_yaml(data, source)
    if plain is not None and not isinstance(plain, dict):
        raise ConfigError(source, [Problem("", "expected keys such as outbound: at the top", 1)])
    try:
        config = Config.model_validate(plain if plain is not None else {})
    except ValidationError as error:
        lines = _read_lines(data)
        for detail in error.errors(include_url=False):
            if detail["type"] == "too_short" and detail["input"]:
                continue  # its entries are there, and reported by themselves
            problems.append(_problem(detail, plain, lines))
    else:
        problems.extend(_misfits(config, plain, data))
    if problems:
        raise ConfigError(source, problems)
    return config


def _misfits(config: Config, plain: Any, data: bytes | str) -> Iterator[Problem]:
    found = list(misfits(config))
    lines = _read_lines(data) if found else {}
    for misfit in found:
        path = _written_path(misfit.location, plain, keep_last=False)
        yield Problem(_spell(path), misfit.message, _line_of(path, lines))


# ---- YAML ----

_CLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NOTHING = object()
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    "true": True,
    "false": False,
}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(\.[0-9]+)?", re.ASCII)
_ADDRESS = re.compile(r"\S+:[0-9]{1,5}", re.ASCII)
# What brings traffic here by rules in the kernel is not there without a word.
_NOT_BY_CHANCE = ("inbound", "redirect")
_TEXT_TAGS = ("tag:yaml.org,2002:str", "!")
_COLLECTION_TAGS = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq", "!")


def _plain(text: str) -> Any:
    """An unquoted value as in YAML 1.2: only ``true`` and ``false`` are booleans, and a leading
    zero or a colon makes a text and not a number (1.1 reads 0600 as octal and 10:20 as base 60)."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if text[0] in "-0123456789":
        number = _NUMBER.fullmatch(text)
        if number is not None:
            return int(text) if number[1] is None else float(text)
    return text


class _Open:
    """A mapping or list whose end has not come. ``size`` is in values, those within aliases too.
    Of a mapping: ``key`` is the one whose value comes next, ``lines`` those of its keys. (Not a
    dataclass, as there are very many.)"""

    __slots__ = ("anchor", "key", "lines", "size", "value")

    def __init__(self, value: Any, anchor: str | None) -> None:
        self.value = value
        self.anchor = anchor
        self.size = 1
        self.key: Any = _NOTHING
        self.lines: dict[str, int] | None = {} if type(value) is dict else None


class _Refused(Exception):
    """What YAML allows and no configuration needs, or an error of YAML's."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Builder:
    """Plain values from the events of a parser. Nothing is built that is nested too deep, or that
    aliases make large: an alias stands for its value, and is one object with it."""

    def __init__(self, source: str) -> None:
        self.problems: list[Problem] = []
        self.empty: list[tuple[dict[str, Any], KeyPath]] = []
        """Keys with nothing behind them, and the mapping that each is in."""
        self._source = source
        self._open: list[_Open] = []
        self._root: Any = _NOTHING
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._aliased = 0

    def build(self, loader: Any) -> Any:
        """The document, None where there is none. Raises ConfigError."""
        get_event, scalar = loader.get_event, yaml.ScalarEvent
        try:
            while True:
                event = get_event()
                kind = type(event)
                if kind is scalar:
                    self._scalar(event)
                elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                    self._start(event, {} if kind is yaml.MappingStartEvent else [])
                elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                    done = self._open.pop()
                    if done.anchor is not None:
                        self._anchors[done.anchor] = (done.value, done.size)
                    self._add(done.value, done.size, event)
                elif kind is yaml.AliasEvent:
                    self._alias(event)
                elif kind is yaml.DocumentStartEvent:
                    if self._root is not _NOTHING:
                        raise _Refused("expected one document", _line(event))
                elif kind is yaml.StreamEndEvent:
                    return None if self._root is _NOTHING else self._root
        except _Refused as refusal:
            self.problems.append(Problem(self._key(), str(refusal), refusal.line))
            raise ConfigError(self._source, self.problems) from None

    def _scalar(self, event: Any) -> None:
        """Most events by far are of these, so this does by itself what ``_add`` does."""
        text = event.value
        top = self._open[-1] if self._open else None
        if top is not None and top.key is _NOTHING and top.lines is not None:
            if text in top.lines:
                self._complain_of_twice(text, event)
            else:
                top.lines[text] = _line(event)
            top.key = text
            return
        tag = event.tag
        if tag is not None and tag not in _TEXT_TAGS:
            raise _Refused(f"expected no tag {_shown(tag)}", _line(event))
        value = _plain(text) if tag is None and event.implicit[0] else text
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        if top is None or top.size >= _MAX_VALUES:
            self._add(value, 1, event)
            return
        top.size += 1
        if top.lines is None:
            top.value.append(value)
        else:
            top.value[top.key] = value
            if value is None and not text:
                self.empty.append((top.value, self._path()))
            top.key = _NOTHING

    def _complain_of_twice(self, key: str, event: Any) -> None:
        lines = self._open[-1].lines
        assert lines is not None
        self.problems.append(
            Problem(
                self._key(key),
                f"expected each key once; it is in line {lines[key]} already",
                _line(event),
            )
        )

    def _start(self, event: Any, value: Any) -> None:
        if self._expects_key():
            raise _Refused("expected a text as key", _line(event))
        if event.tag is not None and event.tag not in _COLLECTION_TAGS:
            raise _Refused(f"expected no tag {_shown(event.tag)}", _line(event))
        if len(self._open) >= _MAX_DEPTH:
            raise _Refused(f"expected a depth of at most {_MAX_DEPTH}", _line(event))
        if event.anchor is not None:
            self._anchors.pop(event.anchor, None)
        self._open.append(_Open(value, event.anchor))

    def _alias(self, event: Any) -> None:
        if self._expects_key():
            raise _Refused("expected a text as key", _line(event))
        if event.anchor not in self._anchors:
            raise _Refused(
                f"expected an alias of a value before it: *{_shown(event.anchor)}", _line(event)
            )
        value, size = self._anchors[event.anchor]
        self._aliased += size
        if self._aliased > _MAX_ALIASED:
            raise _Refused(
                f"expected aliases that stand for at most {_MAX_ALIASED:,} values", _line(event)
            )
        self._add(value, size, event)

    def _expects_key(self) -> bool:
        return bool(
            self._open and self._open[-1].key is _NOTHING and self._open[-1].lines is not None
        )

    def _add(self, value: Any, size: int, event: Any) -> None:
        if not self._open:
            self._root = value
            return
        top = self._open[-1]
        top.size += size
        if type(top.value) is list:
            top.value.append(value)
        else:
            top.value[top.key] = value
            top.key = _NOTHING
        if top.size > _MAX_VALUES:
            raise _Refused(f"expected at most {_MAX_VALUES:,} values", _line(event))

    def _key(self, last: str | None = None) -> str:
        """Of the place where the parser is."""
        path = self._path()
        return _spell((*path, last) if last is not None else path)

    def _path(self) -> KeyPath:
        path: list[str | int] = []
        for each in self._open:
            if type(each.value) is list:
                path.append(len(each.value))
            elif each.key is not _NOTHING:
                path.append(each.key)
        return tuple(path)


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _read_yaml(data: bytes | str, source: str) -> tuple[Any, list[Problem]]:
    """The plain values, and the keys that are there twice. Raises ConfigError."""
    builder = _Builder(source)
    try:
        loader = _CLoader(data)
        try:
            plain = builder.build(loader)
        finally:
            loader.dispose()
        _fill_empty(builder.empty)
        return plain, builder.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        text = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(
            source, [Problem("", f"not YAML: {text}", mark.line + 1 if mark else None)]
        ) from None
    except yaml.reader.ReaderError as error:
        line = data[: error.position].count(b"\n" if isinstance(data, bytes) else "\n") + 1  # type: ignore[arg-type]
        raise ConfigError(
            source, [Problem("", f"not YAML: {error.reason}: expected text in UTF-8", line)]
        ) from None
    except UnicodeError as error:
        raise ConfigError(source, [Problem("", f"not YAML: {error}")]) from None


def _fill_empty(empty: list[tuple[dict[str, Any], KeyPath]]) -> None:
    """A section without a line, as when all of them are commented out, is there, with its defaults:
    nobody writes ``tls:`` to go without. Who wants none writes ``null``."""
    for mapping, path in empty:
        key = str(path[-1])
        section, names = _section_and_names(path[:-1])
        field = None if names or section is None else section.model_fields.get(key)
        if key in _NOT_BY_CHANCE or field is None or field.default is not None:
            continue
        if section_of(field.annotation):
            mapping[key] = {}


def _read_lines(data: bytes | str) -> dict[KeyPath, int]:
    """The line of each key, of what ``_read_yaml`` could read."""
    lines: dict[KeyPath, int] = {}
    loader = _CLoader(data)
    try:
        root = loader.get_single_node()
        if root is not None:
            _index(root, (), lines, set())
    finally:
        loader.dispose()
    return lines


def _index(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], seen: set[int]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in seen:  # an alias: its lines are where it was first written
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _index(item, (*path, index), lines, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _index(value, (*path, key.value), lines, seen)


# ---- What the schema found, in our words ----


def _spell(path: KeyPath) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{_shown(part)}" if text else _shown(part)
    return text


def _shown(text: str) -> str:
    """A key or the like, without what a terminal would obey, and short."""
    text = text[:_MAX_SHOWN]
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _problem(detail: Any, plain: Any, lines: dict[KeyPath, int]) -> Problem:
    path = _written_path(detail["loc"], plain, keep_last=detail["type"] == "missing")
    return Problem(_spell(path), _message(detail, path), _line_of(path, lines))


def _line_of(path: KeyPath, lines: dict[KeyPath, int]) -> int | None:
    """Of the key itself, or the nearest one around it."""
    return next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)


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
        elif keep_last and (isinstance(at, dict) or at is None):
            return (*path, part)
        else:
            break
        path = (*path, part)
    return path


def _is_secret(path: KeyPath) -> bool:
    """Whether the value of a key is not to be shown: what is wrong with it may be a secret."""
    for at, part in enumerate(path):
        section = _section(path[:at])
        field = section.model_fields.get(str(part)) if section else None
        extra = field.json_schema_extra if field else None
        if isinstance(extra, dict) and extra.get("secret") is True:
            return True
    return False


def _message(detail: Any, path: KeyPath) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden":
        if value is None and _ADDRESS.fullmatch(str(path[-1])):
            return "expected quotes around addresses with commas"
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
        expected = f"expected {_known(path)}"
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
    if _is_secret(path):
        return expected
    shown = _repr(value)
    if len(shown) > _MAX_SHOWN:
        shown = shown[: _MAX_SHOWN - 1] + "…"
    return f"{shown}: {expected}"


def _section(path: KeyPath) -> type[BaseModel] | None:
    return _section_and_names(path)[0]


def _section_and_names(path: KeyPath) -> tuple[type[BaseModel] | None, bool]:
    """And whether what is below it are names that the user chooses, each with such a section."""
    section: type[BaseModel] | None = Config
    names = False
    for part in path:
        if names:
            names = False
        elif isinstance(part, str) and section is not None:
            field = section.model_fields.get(part)
            section = section_of(field.annotation) if field else None
            names = field is not None and get_origin(field.annotation) is dict
    return section, names


def _suggestion(path: KeyPath) -> str:
    parent = _section(path[:-1])
    known = list(parent.model_fields) if parent else []
    close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; expected one of {', '.join(known)}"


def _known(path: KeyPath) -> str:
    section, names = _section_and_names(path)
    keys = f": {', '.join(section.model_fields)}" if section else ""
    if names:
        return f"names below it, each with keys{keys}" if keys else "names below it"
    return f"keys below it{keys}"
