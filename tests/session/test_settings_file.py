"""weft.toml: written with comments, read strictly, edited in place."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import weft
from weft.errors import SessionError, SettingsError
from weft.session.fields import describe, format_value, parse_value
from weft.session.input import InputSettings
from weft.session.session import Session
from weft.session.toml_file import edit_key
from weft.settings import Settings, setting

NewSession = Callable[..., Session]


class Sample(Settings):
    """A section."""

    length: float = setting(2.0, "A length.", unit="Å", gt=0, le=10)
    grid: tuple[int, int] = setting((5, 5), "Points.")
    size: int | Literal["auto"] = setting("auto", "A size.", ge=1)
    gain: str | None = setting(None, "A file.")
    mode: Literal["warp", "none"] = setting("warp", "A choice; none is one.")


def test_every_key_is_in_the_file_with_a_comment_that_states_unit_default_and_limits(
    new_session: NewSession,
) -> None:
    session = new_session()
    text = (session.root / "weft.toml").read_text()
    plain = tomllib.loads(text)
    for section, values in session.settings.values.items():
        assert set(plain[section]) == set(type(values).model_fields)
        for name in type(values).model_fields:
            doc = describe(type(values), name)
            lines = text.split(f"[{section}]\n")[1].split("\n")
            at = next(i for i, line in enumerate(lines) if line.startswith(f"{name} = "))
            comment = ""
            while lines[at - 1].startswith("#"):
                at -= 1
                comment = f"{lines[at][2:]} {comment}"
            assert doc.description.rstrip(".") in comment
            assert doc.unit in comment
            assert doc.allowed in comment
            assert ("required" if doc.required else "default ") in comment


def test_what_is_written_is_what_is_read(new_session: NewSession) -> None:
    session = new_session(motion={"bfactor": 77.0}, average={"halves": True}, ctf={"range_max": 4.5})
    assert session.settings.plain()["motion"]["bfactor"] == 77.0
    assert session.settings.plain()["average"]["halves"] is True
    assert session.settings.plain()["ctf"]["range_max"] == 4.5
    assert session.settings.input.defects is None


@pytest.mark.parametrize("missing", ["pixel_size", "voltage", "cs", "amplitude", "dose_per_frame"])
def test_physics_has_no_silent_default(new_session: NewSession, missing: str) -> None:
    with pytest.raises(SettingsError, match=rf"\[input\] {missing}.* missing"):
        new_session(**{missing: None})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[motion]", "[motion]\nspeed = 3", r"\[motion\] speed is not a setting; there are range_min"),
        ("[motion]", "[motoin]", r"\[motoin\] is not a section; there are input, motion"),
        (
            "voltage = 300.0",
            "voltage = -1",
            r"\[input\] voltage = -1 is not allowed, it must be a number, >",
        ),
        ("voltage = 300.0", "voltage = 'x'", r"\[input\] voltage = \"x\" is not allowed"),
        ("voltage = 300.0", "", r"\[input\] voltage \(kV\) is missing"),
        ("voltage = 300.0", "voltage = ", r"not valid TOML.*line"),
    ],
)
def test_reading_is_strict_and_says_where(new_session: NewSession, old: str, new: str, message: str) -> None:
    session = new_session()
    path = session.root / "weft.toml"
    path.write_text(path.read_text().replace(f"\n{old}\n", f"\n{new}\n"))
    with pytest.raises(SettingsError, match=message) as caught:
        _ = session.settings
    assert str(path) in str(caught.value)


def test_editing_keeps_comments_order_and_what_people_wrote(new_session: NewSession) -> None:
    session = new_session()
    path = session.root / "weft.toml"
    path.write_text(path.read_text().replace("voltage = 300.0", "voltage = 300.0  # our Krios\n# mine"))
    before = path.read_text()
    session.set("input.voltage", "200")
    after = path.read_text()
    assert after == before.replace("voltage = 300.0  # our Krios", "voltage = 200.0  # our Krios")
    assert session.settings.input.voltage == 200.0


def test_a_refused_edit_changes_nothing(new_session: NewSession) -> None:
    session = new_session()
    before = (session.root / "weft.toml").read_bytes()
    for key, value in (("input.voltage", "-5"), ("input.foo", "1"), ("foo", "1"), ("average.bin", "x")):
        with pytest.raises(SettingsError, match=key.split(".")[-1]):
            session.set(key, value)
    assert (session.root / "weft.toml").read_bytes() == before


def test_lists_over_several_lines_are_replaced_whole() -> None:
    text = '[a]\nx = [\n  1, # one\n  2,\n]\ny = "k = 3"\n[b]\nx = 1\n'
    assert edit_key(text, "a", "x", [3]) == '[a]\nx = [3]\ny = "k = 3"\n[b]\nx = 1\n'
    assert edit_key(text, "b", "x", 2).endswith("[b]\nx = 2\n")
    assert edit_key(text, "a", "new", 1).splitlines()[6] == "new = 1"
    assert edit_key("", "c", "x", 1) == "\n[c]\nx = 1\n"


def test_a_file_written_in_another_style_is_refused_rather_than_broken() -> None:
    with pytest.raises(SettingsError, match="by hand"):
        edit_key("a = {x = 1}\n", "a", "x", 2)


def test_values_as_people_type_them() -> None:
    def read(name: str, text: str) -> object:
        return parse_value(Sample, name, text, f"--{name}")

    assert read("length", "3") == 3.0
    assert read("grid", "3,4") == (3, 4)
    assert read("grid", "[3, 4]") == (3, 4)
    assert read("size", "auto") == "auto"
    assert read("size", "4") == 4
    assert read("gain", "none") is None
    assert read("gain", "") is None
    assert read("gain", "a b.mrc") == "a b.mrc"
    assert read("mode", "none") == "none"
    with pytest.raises(
        SettingsError, match=r"--length: '11x' is not allowed, it must be a number, > 0, ≤ 10"
    ):
        read("length", "11x")


@given(
    st.one_of(
        st.integers(-(2**62), 2**62),
        st.floats(allow_nan=False),
        st.booleans(),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.lists(st.integers(-9, 9)),
    )
)
def test_any_value_survives_toml(value: object) -> None:
    assert tomllib.loads(f"x = {format_value(value)}")["x"] == value


def test_one_pattern_needs_no_list() -> None:
    physics = {"pixel_size": 1, "voltage": 300, "cs": 2.7, "amplitude": 0.1, "dose_per_frame": 1}
    assert InputSettings(frames="a/*.tif", **physics).frames == ("a/*.tif",)


def test_a_session_is_not_made_twice(new_session: NewSession) -> None:
    session = new_session()
    with pytest.raises(SessionError, match="is a session already"):
        new_session()
    assert weft.open(session.root).settings.input.voltage == 300.0


def test_a_folder_without_settings_is_no_session(tmp_path: object) -> None:
    with pytest.raises(SessionError, match="not a Weft session"):
        weft.open(str(tmp_path))


def test_a_missing_gain_is_noticed_at_once(new_session: NewSession) -> None:
    with pytest.raises(SettingsError, match="gain: there is no file"):
        new_session(gain="/nowhere/gain.mrc")
