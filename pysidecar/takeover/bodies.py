"""What applications say in JSON: read with little trust, and refused in words that help."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from pysidecar.registry.service import ServiceKey
from pysidecar.text import printable

__all__ = ["Body", "BodyError", "service_key"]

MAX_NAME: Final = 512
MAX_TEXT: Final = 1024
MAX_PROPERTIES: Final = 64
MAX_TEXTS: Final = 4096

# Registries write names into paths, queries and lists.
_NAME = re.compile(r"[^\s/?&#%\\,;\"'<>|`=]+")
_SHOWN_KEY = 64
_DEFAULT_GROUPS = ("", "SOFA")  # of SOFARegistry


class BodyError(Exception):
    """What was expected, for who sent it, with the key where there is one."""


class Body:
    """An object of JSON, in which ``null`` is as good as nothing. Each call raises BodyError that
    names the key."""

    def __init__(self, value: Any, key: str = "") -> None:
        if not isinstance(value, dict):
            raise BodyError(f"{key}: expected an object" if key else "expected an object of JSON")
        self._value: Mapping[str, Any] = value
        self._key = key

    def __contains__(self, key: str) -> bool:
        return key in self._value

    def part(self, key: str) -> Body:
        """An object within; empty where it is missing."""
        value = self._value.get(key)
        return Body({} if value is None else value, self._name(key))

    def text(self, key: str, *, longest: int = MAX_TEXT) -> str:
        """Empty where it is missing."""
        value = self._value.get(key)
        if value is None:
            return ""
        if not isinstance(value, str) or not value.isprintable() or len(value) > longest:
            self._fail(key, f"a text of at most {longest} printable characters")
        return value

    def name(self, key: str, example: str, *, required: bool = True) -> str:
        """Such as every registry can have. Where it is not ``required``, empty if it is missing."""
        value = self._value.get(key)
        if not required and (value is None or value == ""):
            return ""
        if not isinstance(value, str) or not value.isprintable() or not _NAME.fullmatch(value):
            self._fail(key, f"a name such as {example}")
        if len(value) > MAX_NAME:
            self._fail(key, f"a name of at most {MAX_NAME} characters")
        return value

    def number(self, key: str, least: int, most: int) -> int | None:
        """Also one that is written as a text. None where it is missing."""
        value = self._value.get(key)
        if value is None or value == "":
            return None
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._fail(key, f"a number from {least} to {most}")
        return value

    def texts(self) -> dict[str, str]:
        """All that is in it, and not ``null``."""
        if len(self._value) > MAX_PROPERTIES:
            raise BodyError(f"{self._key}: expected at most {MAX_PROPERTIES} keys")
        texts: dict[str, str] = {}
        for key, value in self._value.items():
            if not key.isprintable() or not _NAME.fullmatch(key):
                raise BodyError(f"{self._name(key)}: expected a key such as weight")
            if isinstance(value, bool):
                texts[key] = str(value).lower()
            elif isinstance(value, int | float):
                texts[key] = repr(value)[:MAX_TEXT]
            elif value is not None:
                texts[key] = self.text(key)
        if sum(len(key) + len(text) for key, text in texts.items()) > MAX_TEXTS:
            raise BodyError(f"{self._key}: expected at most {MAX_TEXTS} characters in all")
        return texts

    def _name(self, key: str) -> str:
        shown = printable(key[:_SHOWN_KEY])
        return f"{self._key}.{shown}" if self._key else shown

    def _fail(self, key: str, expected: str) -> NoReturn:
        raise BodyError(f"{self._name(key)}: expected {expected}")


def service_key(protocol: str, name: str, group: str, version: str = "") -> ServiceKey:
    """For a name as applications write it. Of dubbo and tri that is the interface, or what SOFARPC
    makes of one, ``interface:version:uniqueId``, whose unique id it has for Dubbo's group."""
    if protocol in ("http", "grpc"):
        return ServiceKey.named(protocol, name)
    if protocol == "bolt":
        return ServiceKey(protocol, name, group="" if group in _DEFAULT_GROUPS else group)
    interface, _, rest = name.partition(":")
    in_name, _, unique = rest.partition(":")
    return ServiceKey.named(protocol, interface, version or in_name, group or unique)
