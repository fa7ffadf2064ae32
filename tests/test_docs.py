"""The documentation says what the program does."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from weft.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
QUICKSTART = (DOCS / "quickstart.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def make_reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_current(make_reference: ModuleType) -> None:
    for path, page in make_reference.PAGES.items():
        assert path.read_text(encoding="utf-8") == page(), f"{path} is out of date: run `make docs`"


def test_every_command_is_documented(make_reference: ModuleType) -> None:
    reference = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    prose = "\n".join(p.read_text(encoding="utf-8") for p in PAGES if p.parent.name != "reference")
    for name, command in make_reference.commands():
        assert f"## {name}\n" in reference
        assert (command.help or "").strip(), f"{name} says nothing about itself"
    for name in COMMANDS:
        assert f"weft {name}" in prose, f"no page speaks of weft {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_files_that_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:tests|docs|benchmarks|src)/[\w/.]+)`", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / name).exists(), f"{page.name} speaks of {name}, which is not there"


def test_shell_lines_are_commands_that_exist(make_reference: ModuleType) -> None:
    """Every ``weft ...`` line in an indented or fenced block has a known command and known options."""
    known = dict(make_reference.commands())
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?: {4,}|)(weft [a-z].*)$", text, flags=re.MULTILINE):
            if page.parent.name == "reference":
                continue
            words = shlex.split(line, comments=True)
            name = next((n for n in (" ".join(words[:3]), " ".join(words[:2])) if n in known), None)
            assert name is not None, f"{page.name}: {line}"
            options = {o for p in known[name].params for o in [*p.opts, *p.secondary_opts]}
            for word in words:
                if word.startswith("--"):
                    assert word.split("=")[0] in options, f"{page.name}: {line}"


def test_the_quickstart_runs(tmp_path: Path) -> None:
    """Its blocks marked ``run``, in order, in a folder where the demonstration has simulated small movies."""
    from weft.simulation.session import simulate_session
    from weft.simulation.settings import MovieSimulationSettings

    size = {"width": 256, "height": 256, "frames": 4}
    settings = MovieSimulationSettings(**size, dose_per_frame=2.0)
    simulate_session(tmp_path / "demo", 1, settings, seed=2)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / "src"), *sys.path]))
    weft = f"{shlex.quote(sys.executable)} -m weft"
    new = "new demo/session --frames 'demo/frames/*.tif' --pixel-size 1 --voltage 300 --cs 2.7"
    new += " --amplitude 0.07 --dose 2"
    blocks = [("sh", f"weft {new}\nweft run demo/session --workers 0")]
    blocks += re.findall(r"^```(sh|python) run\n(.*?)^```", QUICKSTART, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) > 4, "the quickstart has lost its runnable blocks"
    shell = "\n".join(code for kind, code in blocks if kind == "sh")
    python = "\n".join(code for kind, code in blocks if kind == "python")
    for command in (["sh", "-ec", f'weft() {{ {weft} "$@"; }}\n{shell}'], [sys.executable, "-c", python]):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "mysession" / "micrographs_selected.star").exists()
