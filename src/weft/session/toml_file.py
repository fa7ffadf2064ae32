"""weft.toml as text: written with a comment for each key, and edited without losing what people wrote."""

from __future__ import annotations

import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from weft.errors import SettingsError
from weft.session.fields import FieldDoc, describe_all, format_value
from weft.settings import Settings

__all__ = ["edit_key", "render"]

_HEAD = """\
# Settings of this Weft session. Edit freely, or use `weft settings SESSION section.key value`.
# `weft run` redoes exactly the steps that read a setting that changed. A key that is left out has
# its default; "" stands for "none" where none is allowed.
"""


def _comment(doc: FieldDoc) -> str:
    default = "required" if doc.required else f"default {_shown(doc.default)}"
    facts = "; ".join(part for part in (f"in {doc.unit}" if doc.unit else "", doc.allowed, default) if part)
    text = f"{doc.description.rstrip('.')} ({facts})"
    lines = textwrap.wrap(text, 98, break_on_hyphens=False)
    return "\n".join(f"# {line}" for line in lines)


def _shown(value: Any) -> str:
    return "none" if value is None else format_value(value)


def _summary(model: type[Settings]) -> str:
    text = (model.__doc__ or "").strip().split("\n\n")[0]
    return "\n".join(f"# {line}" for line in textwrap.wrap(" ".join(text.split()), 98))


def render(sections: Mapping[str, Settings]) -> str:
    """The whole file: every section and key, with its description, unit, limits and default."""
    parts = [_HEAD]
    for name, values in sections.items():
        parts.append(f"\n{_summary(type(values))}\n[{name}]\n")
        for doc in describe_all(type(values)):
            parts.append(f"\n{_comment(doc)}\n{doc.name} = {format_value(getattr(values, doc.name))}\n")
    return "".join(parts)


def _statements(lines: list[str]) -> Iterator[tuple[int, int, str, str]]:
    """(first line, line after, section, key) of every assignment; a value may span several lines."""
    section = ""
    index = 0
    while index < len(lines):
        line = lines[index]
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$", line)
        key = re.match(r"\s*([A-Za-z0-9_-]+)\s*=", line)
        end = index + 1
        if header:
            section = header.group(1)
        elif key:
            while end <= len(lines):
                try:
                    tomllib.loads("\n".join(lines[index:end]))
                except tomllib.TOMLDecodeError:
                    end += 1
                    continue
                yield index, end, section, key.group(1)
                break
            else:
                end = index + 1
        index = end


def edit_key(text: str, section: str, key: str, value: Any) -> str:
    """`text` with one key set to another value; comments, order and all else stay as they are.

    Raises
    ------
    SettingsError
        When the file is written in a way that cannot be edited by key (inline tables, dotted keys).
    """
    lines = text.split("\n")
    wanted = f"{key} = {format_value(value)}"
    last_of_section: int | None = None
    for start, end, name, found in _statements(lines):
        if name != section:
            continue
        if found == key:
            tail = re.search(r"\s+#[^\"']*$", lines[start]) if end == start + 1 else None
            lines[start:end] = [wanted + (tail.group(0) if tail else "")]
            break
        last_of_section = end
    else:
        if last_of_section is not None:
            lines[last_of_section:last_of_section] = [wanted]
        else:
            headers = [
                i for i, line in enumerate(lines) if re.match(rf"\s*\[\s*{re.escape(section)}\s*\]", line)
            ]
            if headers:
                lines[headers[0] + 1 : headers[0] + 1] = [wanted]
            else:
                lines += [f"[{section}]", wanted, ""]
    edited = "\n".join(lines)
    try:
        plain = tomllib.loads(edited)[section][key]
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        plain = None
    if plain != tomllib.loads(f"value = {format_value(value)}")["value"]:
        raise SettingsError(f"[{section}] {key} cannot be edited from here; edit weft.toml by hand.")
    return edited
