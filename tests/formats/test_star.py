"""STAR: strict reading, exact writing; against the starfile package and real files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.errors import CorruptError, FormatError, TruncatedError
from weft.formats.star import Table, format_star, parse_star, read_star, write_star

TEXT = """# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnVoltage #2   kV
 "group one" 300.000000   # a comment
'it''s #2'  200.5
# between the rows


data_general

_rlnImageSizeX      3838
_rlnName            "a 'quoted' name"

data_empty

loop_
_rlnA #1

data_
loop_
_rlnB
x"y'z
"""


def test_reads_blocks_loops_pairs_and_quotes() -> None:
    blocks = parse_star(TEXT)
    assert list(blocks) == ["optics", "general", "empty", ""]
    optics = blocks["optics"]
    assert optics["rlnOpticsGroupName"] == ["group one", "it''s #2"]
    np.testing.assert_array_equal(optics.floats("rlnVoltage"), [300.0, 200.5])
    assert not blocks["general"].loop
    assert blocks["general"].value("rlnName") == "a 'quoted' name"
    assert blocks["general"].ints("rlnImageSizeX").tolist() == [3838]
    assert len(blocks["empty"]) == 0
    assert blocks[""]["rlnB"] == ["x\"y'z"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("data_a\nloop_\n_b\n_c\n1 2\n3\n4 5\n", CorruptError, "line 6: 1 values where the loop has 2"),
        ("data_a\nloop_\n_b\n_c\n1 2\n3 4 5\n6 7\n", CorruptError, "line 6: 3 values"),
        ("data_a\nloop_\n_b\n_c\n1 2\n3", TruncatedError, "cut short"),
        ("data_a\n_b 1\n_b 2\n", CorruptError, "_b occurs twice"),
        ("data_a\nloop_\n_b\n_b\n", CorruptError, "_b occurs twice"),
        ("data_a\n_b 1\n\ndata_a\n_c 1\n", CorruptError, "second block"),
        ("data_a\n_b 1 2\n", CorruptError, "2 values, not one"),
        ("data_a\n_b\n", CorruptError, "0 values, not one"),
        ("data_a\n_b 'x\n", CorruptError, "without its end"),
        ("data_a\nloop_\n_b\n1\n\n2\n", CorruptError, "blank line"),
        ("data_a\nvalue\n", CorruptError, "without a label"),
        ("data_a\nloop_\n_b\n1\n\nloop_\n_c\n2\n", CorruptError, "second table"),
        ("data_a\nloop_\n\n", CorruptError, "without labels"),
        ("data_a\nloop_\n_b\n;text\n;\n", FormatError, "several lines"),
        ("1 2 3\n", FormatError, "not STAR"),
        ("# only a comment\n", FormatError, "no data_ block"),
    ],
)
def test_faults_are_errors_with_their_line(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_star(text, "a.star")


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(b"")
    with pytest.raises(TruncatedError, match="empty"):
        read_star(path)
    path.write_bytes(b"data_a\n_b 1\n" + bytes(100))
    with pytest.raises(CorruptError, match="zero bytes"):
        read_star(path)


def test_numbers_are_converted_only_on_request() -> None:
    table = parse_star("data_a\nloop_\n_n\n_x\n007 1e5\n1e5 x\n")["a"]
    assert table["n"] == ["007", "1e5"]
    with pytest.raises(ValueError, match="row 1 of 'x' is 'x'"):
        table.floats("x")
    assert Table({"k": ["3.000000", 4, 5.0]}).ints("k").tolist() == [3, 4, 5]
    with pytest.raises(ValueError, match="row 0"):
        Table({"k": ["3.5"]}).ints("k")
    with pytest.raises(KeyError, match="no column 'z'; there are n, x"):
        table["z"]


# everything that a STAR value can be: no control characters or line separators
NASTY = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]) | st.sampled_from(list(" \"'#_;$\\\t,[]")),
    max_size=12,
)


def _quotable(text: str) -> bool:
    # one of the quotes must not be followed by white space or the end
    return any(not text.endswith(q) and not any(text[i : i + 1] == q and text[i + 1 : i + 2].isspace()
               for i in range(len(text))) for q in "\"'")  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(NASTY.filter(_quotable), st.floats(), st.integers(), st.floats(width=32, allow_nan=False)),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_round_trip(rows: list[tuple[str, float, int, float]], loop: bool) -> None:
    rows = rows if loop else rows[:1]
    text, number, whole, single = (list(column) for column in zip(*rows))
    table = Table({"t": text, "f": number, "i": whole, "s": np.array(single, np.float32)}, loop)
    back = parse_star(format_star({"first": table, "": Table({"x": ["y"]}, False)}))["first"]
    assert back["t"] == text
    assert [int(v) for v in back.strings("i")] == whole
    for a, b in zip(back.floats("f"), number):
        assert (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    np.testing.assert_array_equal(back.floats("s").astype(np.float32), np.array(single, np.float32))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["a\nb"], "line breaks"),
        (["a\0"], "line breaks"),
        (["'a\" b' c"], "cannot be quoted"),
        ([None], "no way to write"),
        (np.zeros((2, 2)), "2 dimensions"),
    ],
)
def test_what_star_cannot_hold_is_refused(tmp_path: Path, column: object, words: str) -> None:
    path = tmp_path / "a.star"
    path.write_text("old")
    with pytest.raises(ValueError, match=words):
        write_star(path, {"a": Table({"c": column})})  # type: ignore[dict-item]
    assert path.read_text() == "old"


def test_writer_refuses_wrong_tables() -> None:
    with pytest.raises(ValueError, match="unequal length"):
        format_star({"a": Table({"b": [1], "c": [1, 2]})})
    with pytest.raises(ValueError, match="every column has one value"):
        format_star({"a": Table({"b": [1, 2]}, loop=False)})
    with pytest.raises(ValueError, match="label"):
        format_star({"a": Table({"b c": [1]})})
    with pytest.raises(ValueError, match="name"):
        format_star({"a b": Table({"b": [1]})})


def test_starfile_reads_what_is_written(tmp_path: Path) -> None:
    starfile = pytest.importorskip("starfile")
    rng = np.random.default_rng(0)
    values = rng.normal(size=50) * 10.0 ** rng.integers(-20, 20, 50)
    names = [f"folder/movie {i}.tif" for i in range(50)]
    path = tmp_path / "a.star"
    pair = Table({"rlnTomoName": ["TS 1"], "rlnVoltage": [300.0]}, loop=False)
    write_star(path, {"micrographs": Table({"rlnMicrographName": names, "rlnX": values}), "general": pair})
    other = starfile.read(path, always_dict=True)
    assert other["micrographs"]["rlnMicrographName"].tolist() == names
    # pandas' own parser may be off in the last digit
    np.testing.assert_allclose(other["micrographs"]["rlnX"], values, rtol=1e-15)
    assert other["general"]["rlnTomoName"] == "TS 1"


# a test file of ASPIRE's that is broken on purpose, as its rows show
BROKEN = {"ComputationalCryoEM__ASPIRE-Python/sample.star"}


def test_real_files(reference_data: Path) -> None:
    """Files by RELION 2 to 5, WarpTools, M, cryoSPARC exports: all parse, as starfile parses them."""
    starfile = pytest.importorskip("starfile")
    root = reference_data / "real"
    seen = 0
    for path in sorted(root.rglob("*.star")):
        if str(path.relative_to(root)) in BROKEN:
            with pytest.raises(CorruptError, match="line 20"):
                read_star(path)
            continue
        blocks = read_star(path)
        assert blocks, path
        seen += 1
        # starfile is slow: every fifth file, and all of its own
        if path.stat().st_size > 50_000 or (seen % 5 and "teamtomo" not in str(path)):
            continue
        other = starfile.read(path, always_dict=True, parse_as_string=[])
        assert set(other) == set(blocks), path
        for name, table in blocks.items():
            block = other[name]
            assert list(block.keys()) == list(table.columns), path
            for label in table.columns:
                theirs = [block[label]] if not table.loop and isinstance(block, dict) else list(block[label])
                assert len(theirs) == len(table), (path, name)
                for mine, value in zip(table.strings(label), theirs):
                    if mine == "":
                        # an empty string in quotes; pandas makes a missing number of it
                        assert value != value or value == ""
                    elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
                        assert float(mine) == pytest.approx(float(value), rel=1e-9, nan_ok=True)
                    else:
                        assert mine == str(value), (path, name, label)
    assert seen > 200
