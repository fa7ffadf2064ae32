"""What a settings field says about itself, and how its value is read from and written as text.

The comments of ``weft.toml``, the command line's options and its ``--set`` all come from here.
"""

from __future__ import annotations

import json
import tomllib
import types
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from weft.errors import SettingsError
from weft.settings import Settings, extra_of

__all__ = ["FieldDoc", "describe", "describe_all", "explain", "format_value", "parse_value"]


@dataclass(frozen=True)
class FieldDoc:
    """One key of a settings section, described for a person.

    Attributes
    ----------
    name, description, unit : str
    default : Any
        Its default value; meaningless where `required`.
    required : bool
    allowed : str
        Type and limits in words: ``"number, > 0"``, ``"warp, grant or none"``.
    annotation : Any
        The Python type.
    """

    name: str
    description: str
    unit: str
    default: Any
    required: bool
    allowed: str
    annotation: Any

    @property
    def is_flag(self) -> bool:
        """Whether it is a plain yes or no."""
        return self.annotation is bool


def describe(model: type[Settings], name: str) -> FieldDoc:
    """Description of the field `name` of a settings model."""
    info = model.model_fields[name]
    unit = str(extra_of(info).get("unit", ""))
    default = None if info.default is PydanticUndefined else info.default
    return FieldDoc(
        name=name,
        description=info.description or "",
        unit=unit,
        default=default,
        required=info.is_required(),
        allowed=_allowed(info),
        annotation=info.annotation,
    )


def describe_all(model: type[Settings]) -> Iterator[FieldDoc]:
    """Descriptions of all fields, in the model's order."""
    for name in model.model_fields:
        yield describe(model, name)


def _kind(annotation: Any) -> list[str]:
    """The words for a type; a union gives one word each."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [word for part in get_args(annotation) for word in _kind(part)]
    if origin is Literal:
        return [str(value) for value in get_args(annotation)]
    if origin in (tuple, list):
        parts = get_args(annotation)
        word = _kind(parts[0])[0].removeprefix("a ")
        if origin is list or (len(parts) == 2 and parts[1] is Ellipsis):
            return [f"a list of {word}s"]
        return [f"{len(parts)} {word}s"]
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text", Path: "a path"}
    if annotation is type(None):
        return ["none"]
    return [names.get(annotation, getattr(annotation, "__name__", "value").lower())]


def _allowed(info: FieldInfo) -> str:
    words = list(dict.fromkeys(_kind(info.annotation)))
    usual = extra_of(info).get("usual")
    if usual is not None:
        words[-1:] = [f"true (that is {format_value(usual)})", words[-1]]
    text = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    limits = []
    for item in info.metadata:
        for attribute, sign in signs.items():
            bound = getattr(item, attribute, None)
            if bound is not None:
                limits.append(f"{sign} {bound:g}" if isinstance(bound, int | float) else f"{sign} {bound}")
        pattern = getattr(item, "pattern", None)
        if isinstance(pattern, str):
            limits.append(f"matching {pattern}")
    return ", ".join([text, *limits])


def format_value(value: Any) -> str:
    """A value as TOML writes it; None, which TOML lacks, is ``""``."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(format_value(item) for item in value) + "]"
    # JSON's escapes are a subset of TOML's, but for DEL and the characters beyond the BMP
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _candidates(text: str, annotation: Any) -> Iterator[Any]:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    if type(None) in options and text.strip().lower() in ("", "none"):
        yield None
    yield text
    with suppress(tomllib.TOMLDecodeError):
        yield tomllib.loads(f"value = {text}")["value"]
    if any(get_origin(option) in (tuple, list) for option in options):
        yield [part.strip() for part in text.split(",") if part.strip()]


def parse_value(model: type[Settings], name: str, text: str, where: str) -> Any:
    """Read a value that a person typed: plain text, a TOML value or a list with commas.

    Raises
    ------
    SettingsError
        Naming `where` (the key as the person knows it), the value, and what is allowed.
    """
    info = model.model_fields[name]
    annotation: Any = info.annotation
    usual = extra_of(info).get("usual")
    if usual is not None and text.strip().lower() in ("true", "false"):
        return usual if text.strip().lower() == "true" else None
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    for candidate in _candidates(text, info.annotation):
        try:
            value = adapter.validate_python(candidate)
        except ValidationError:
            continue
        return value
    raise SettingsError(f"{where}: {text!r} is not allowed, it must be {_allowed(info)}.")


def explain(error: ValidationError, model: type[Settings], where: str) -> str:
    """One sentence for the first thing that pydantic found wrong.

    Parameters
    ----------
    where : str
        What goes before the key: ``"weft.toml: [motion] "``.
    """
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"{where}{name} is not a setting; there are {', '.join(model.model_fields)}."
    said = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    if name not in model.model_fields:
        return f"{where.rstrip()}: {said}."
    doc = describe(model, name)
    if first["type"] == "missing":
        unit = f" ({doc.unit})" if doc.unit else ""
        return f"{where}{name}{unit} is missing: {doc.description.rstrip('.')}; it has no default."
    if first["type"] == "value_error":
        return f"{where}{name} = {format_value(first['input'])} is not allowed: {said}."
    return f"{where}{name} = {format_value(first['input'])} is not allowed, it must be {doc.allowed}."
