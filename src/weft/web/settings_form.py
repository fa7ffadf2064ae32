"""The form of the settings: made from their models, as the command line and weft.toml are."""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from weft.errors import SettingsError
from weft.session.config import SessionSettings
from weft.session.fields import FieldDoc, describe_all

__all__ = ["field_errors", "form"]

Kind = Literal["bool", "int", "float", "text", "choice", "list"]

_PLAIN: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "text", Path: "text"}


def _options(annotation: Any) -> list[Any]:
    """The types that a field may have, none left out."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for option in get_args(annotation) if option is not type(None)]
    return [annotation]


def _kind(annotation: Any) -> Kind:
    options = _options(annotation)
    if len(options) != 1:
        return "text"  # a number or a word: what is allowed is said beside it
    if get_origin(options[0]) is Literal:
        return "choice"
    if get_origin(options[0]) in (list, tuple):
        return "list"
    return _PLAIN.get(options[0], "text")


def _choices(annotation: Any) -> list[str]:
    return [
        str(value)
        for option in _options(annotation)
        if get_origin(option) is Literal
        for value in get_args(option)
    ]


def _json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def _field(section: str, doc: FieldDoc, value: Any) -> dict[str, Any]:
    return {
        "name": doc.name,
        "key": f"{section}.{doc.name}",
        "description": doc.description,
        "unit": doc.unit,
        "kind": _kind(doc.annotation),
        "choices": _choices(doc.annotation),
        "allowed": doc.allowed,
        "required": doc.required,
        "default": _json(doc.default),
        "value": _json(value),
    }


def form(settings: SessionSettings) -> dict[str, Any]:
    """All sections with their fields and values, as `weft.web.models.SettingsForm` has it."""
    sections = []
    for name, values in settings.values.items():
        text = (inspect.getdoc(type(values)) or "").split("\n\n")[0]
        fields = [_field(name, doc, getattr(values, doc.name)) for doc in describe_all(type(values))]
        sections.append({"name": name, "description": " ".join(text.split()), "fields": fields})
    return {"sections": sections}


def field_errors(settings: SessionSettings, changes: dict[str, str], error: SettingsError) -> dict[str, str]:
    """To which of the changes a refusal belongs.

    Parameters
    ----------
    error : SettingsError
        Why all of them together were refused.

    Returns
    -------
    dict
        Key → sentence. A rule between several settings is broken by all of its section's changes.
    """
    found: dict[str, str] = {}
    for key, text in changes.items():
        try:
            settings.with_value(key, text)
        except SettingsError as own:
            found[key] = str(own).removeprefix("--set: ")
    return found or dict.fromkeys(changes, str(error))
