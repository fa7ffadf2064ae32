"""weft.toml: which sections there are, reading them strictly, changing one key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from weft.errors import SettingsError
from weft.formats.atomic import atomic_write
from weft.session.fields import explain, parse_value
from weft.session.input import EngineSettings, InputSettings, LiveSettings
from weft.session.toml_file import edit_key, render
from weft.settings import Settings

__all__ = ["FILE_NAME", "SessionSettings", "edit_file", "from_plain", "load", "sections", "write_new"]

FILE_NAME = "weft.toml"

S = TypeVar("S", bound=Settings)


def sections() -> Mapping[str, type[Settings]]:
    """The model of every section: [input], those that the steps read, and those that no result depends on."""
    from weft.session.advice import AdviceSettings
    from weft.session.alerts import AlertSettings
    from weft.session.steps import all_steps

    models: dict[str, type[Settings]] = {"input": InputSettings}
    for step in all_steps().values():
        models.update(step.sections)
    models["engine"] = EngineSettings
    models["live"] = LiveSettings
    models["alerts"] = AlertSettings
    models["advice"] = AdviceSettings
    return models


@dataclass(frozen=True)
class SessionSettings:
    """Everything that weft.toml says, checked."""

    values: Mapping[str, Settings]

    @property
    def input(self) -> InputSettings:
        """Where the data are, and the physics of the exposure."""
        return self.get(InputSettings)

    @property
    def engine(self) -> EngineSettings:
        """How the work is spread."""
        return self.get(EngineSettings)

    def get(self, model: type[S]) -> S:
        """The section that has this model."""
        for values in self.values.values():
            if isinstance(values, model):
                return values
        raise KeyError(model.__name__)

    def plain(self) -> dict[str, dict[str, Any]]:
        """Numbers, texts, lists: what is fingerprinted and sent to workers."""
        return {name: values.model_dump(mode="json") for name, values in self.values.items()}

    def with_value(self, key: str, text: str) -> SessionSettings:
        """These settings with ``section.key`` set from text (``--set``).

        Raises
        ------
        SettingsError
        """
        return self.with_values({key: text})

    def with_values(self, changes: Mapping[str, str]) -> SessionSettings:
        """These settings with several values set from text; what they say together is checked, not each.

        Raises
        ------
        SettingsError
        """
        given: dict[str, dict[str, Any]] = {}
        for key, text in changes.items():
            section, name, value = _parse(key, text)
            given.setdefault(section, self.values[section].model_dump())[name] = value
        checked = {
            name: _validate(type(self.values[name]), name, table, "--set") for name, table in given.items()
        }
        return replace(self, values=MappingProxyType({**self.values, **checked}))


def from_plain(plain: Mapping[str, Mapping[str, Any]], where: str = FILE_NAME) -> SessionSettings:
    """Settings from nested tables, checked strictly.

    Raises
    ------
    SettingsError
        For an unknown section or key, a missing or wrong value: naming file, key and what is allowed.
    """
    models = sections()
    for name in plain:
        if name not in models:
            raise SettingsError(f"{where}: [{name}] is not a section; there are {', '.join(models)}.")
    values = {name: _validate(model, name, plain.get(name, {}), where) for name, model in models.items()}
    return SessionSettings(MappingProxyType(values))


def _validate(model: type[S], section: str, given: Any, where: str) -> S:
    if not isinstance(given, Mapping):
        raise SettingsError(f"{where}: {section} must be a section, written [{section}].")
    # "" is how TOML, which has no none, says it
    cleaned = {
        key: None if value == "" and key in model.model_fields and _allows_none(model, key) else value
        for key, value in given.items()
    }
    try:
        return model.model_validate(cleaned)
    except ValidationError as error:
        raise SettingsError(explain(error, model, f"{where}: [{section}] ")) from None


def _allows_none(model: type[Settings], key: str) -> bool:
    return type(None) in get_args(model.model_fields[key].annotation)


def _parse(key: str, text: str) -> tuple[str, str, Any]:
    section, dot, name = key.partition(".")
    models = sections()
    if not dot or section not in models:
        raise SettingsError(f"{key}: a setting is named section.key, with a section of {', '.join(models)}.")
    model = models[section]
    if name not in model.model_fields:
        raise SettingsError(f"{key} is not a setting; [{section}] has {', '.join(model.model_fields)}.")
    return section, name, parse_value(model, name, text, key)


def load(root: Path) -> SessionSettings:
    """Read and check the weft.toml of a session.

    Raises
    ------
    SettingsError
        Naming the file, the key, the value and what is allowed.
    """
    path = root / FILE_NAME
    try:
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}.") from None
    return from_plain(plain, str(path))


def write_new(root: Path, settings: SessionSettings) -> None:
    """Write weft.toml with a comment for every key."""
    with atomic_write(root / FILE_NAME) as handle:
        handle.write(render(settings.values).encode())


def edit_file(root: Path, changes: Mapping[str, str]) -> SessionSettings:
    """Set ``section.key`` → value as text in weft.toml, keeping everything else; the new settings.

    Raises
    ------
    SettingsError
        If any of the changes is wrong; the file is then left as it was.
    """
    settings = load(root).with_values(changes)
    path = root / FILE_NAME
    text = path.read_text(encoding="utf-8")
    for key in changes:
        section, name = key.split(".", 1)
        text = edit_key(text, section, name, settings.values[section].model_dump(mode="json")[name])
    with atomic_write(path) as handle:
        handle.write(text.encode())
    return settings
