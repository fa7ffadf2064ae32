"""How a settings model is written: pydantic fields that carry a unit beside their description.

The science modules define their models with these two names; the command line's help, the comments
of ``weft.toml`` and the web form are made from them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

__all__ = ["Settings", "extra_of", "setting"]


class Settings(BaseModel):
    """Base of all settings models: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, given: Any) -> Any:
        """``true`` stands for a field's usual value, ``false`` for none."""
        if not isinstance(given, dict):
            return given
        return {
            name: (usual if value else None)
            if isinstance(value, bool)
            and name in cls.model_fields
            and (usual := extra_of(cls.model_fields[name]).get("usual")) is not None
            else value
            for name, value in given.items()
        }


def extra_of(info: FieldInfo) -> dict[str, Any]:
    """What :func:`setting` keeps beside pydantic's own facts: ``unit``, ``usual``."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def setting(default: Any, description: str, *, unit: str = "", usual: Any = None, **limits: Any) -> Any:
    """A field of a settings model.

    Parameters
    ----------
    default
        Its default value.
    description : str
        One sentence for the person who sets it.
    unit : str
        ``"Å"``, ``"µm"``, ``"px"`` ...; empty for a plain number or a choice.
    usual
        For something that is off by default: the value that ``true`` stands for.
    **limits
        pydantic's constraints: ``ge``, ``gt``, ``le``, ``lt``, ``pattern`` ...
    """
    extra: dict[str, Any] = {"unit": unit} if usual is None else {"unit": unit, "usual": usual}
    return Field(default, description=description, json_schema_extra=extra, **limits)
