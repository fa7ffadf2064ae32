"""How a settings model is written: pydantic fields that carry a unit beside their description.

The science modules define their models with these two names; the command line's help, the comments
of ``weft.toml`` and the web form are made from them.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Settings", "setting"]


class Settings(BaseModel):
    """Base of all settings models: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def setting(default: Any, description: str, *, unit: str = "", **limits: Any) -> Any:
    """A field of a settings model.

    Parameters
    ----------
    default
        Its default value.
    description : str
        One sentence for the person who sets it.
    unit : str
        ``"Å"``, ``"µm"``, ``"px"`` ...; empty for a plain number or a choice.
    **limits
        pydantic's constraints: ``ge``, ``gt``, ``le``, ``lt``, ``pattern`` ...
    """
    return Field(default, description=description, json_schema_extra={"unit": unit}, **limits)
