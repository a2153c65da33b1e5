"""What all sections of the schema have in common."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["AT_START", "Section", "field_texts", "one_or_many", "sections"]

# In a field's json_schema_extra: a change takes effect at the next start, not at a reload.
AT_START: dict[str, Any] = {"restart": True}


def one_or_many(value: Any) -> Any:
    """A single value stands for a list of it."""
    return value if value is None or isinstance(value, list | tuple) else [value]


class Section(BaseModel):
    """A mapping with known keys."""

    # Not pydantic's use_attribute_docstrings, which reads all sources anew at each start.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return {} if value is None else value  # a key whose lines are all commented out


def sections() -> Iterator[type[Section]]:
    """All kinds that there are."""
    known: list[type[Section]] = [Section]
    while known:
        kind = known.pop()
        yield kind
        known.extend(kind.__subclasses__())


def field_texts(section: type[Section]) -> dict[str, str]:
    """What the source says below each field, for the schema."""
    texts: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if not issubclass(kind, Section):
            continue
        [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(found))),
                ):
                    texts[name] = inspect.cleandoc(found)
    return texts
