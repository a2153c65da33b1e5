"""What all sections of the schema have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

__all__ = ["AT_START", "Section", "one_or_many"]

# In a field's json_schema_extra: a change takes effect at the next start, not at a reload.
AT_START: dict[str, Any] = {"restart": True}


def one_or_many(value: Any) -> Any:
    """A single value stands for a list of it."""
    return value if value is None or isinstance(value, list | tuple) else [value]


class Section(BaseModel):
    """A mapping with known keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, value: Any) -> Any:
        return {} if value is None else value  # a key whose lines are all commented out
