"""One training of a picking network at a time: `weft pick train` as a process, and what it says."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from weft.errors import RequestError, WeftError
from weft.picking.components import PickingSettings
from weft.session.pick_files import FOLDER, MANUAL
from weft.session.picking import DEFAULT, MODELS
from weft.web.picks import pickers_in

if TYPE_CHECKING:
    from weft.session.live import Manager
    from weft.web.picking_models import TrainingOrder

__all__ = ["PickerTraining"]

_log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-m", "weft", "pick", "train")
_GRACE = 10.0  # seconds in which a process may stop by itself
_TOLD = 2000  # characters of what went wrong
_NUMBERS = ("old_on_old", "new_on_old", "old_on_new", "new_on_new")


class PickerTraining:
    """Starts a training, follows it, stops it, and lets its model pick when it is done.

    Parameters
    ----------
    manager : Manager
    command : tuple of str
        What is run, before the session and the options.
    """

    def __init__(self, manager: Manager, command: tuple[str, ...] = _COMMAND) -> None:
        self._manager = manager
        self.command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._began = 0.0
        self._now: dict[str, Any] = _nothing("none", None)

    # ------------------------------------------------------------------ asked for

    def state(self) -> dict[str, Any]:
        """As `picking_models.Training` has it."""
        root = self._root
        with self._lock:
            now = {**self._now, "history": list(self._now["history"])}
            if now["state"] == "running":
                now["seconds"] = round(time.monotonic() - self._began, 1)
        folder = root / FOLDER
        now["model"] = self._manager.session.settings.get(PickingSettings).model
        now["models"] = self._models()
        now["pickers"] = {name: len(list((folder / name).glob("*.star"))) for name in pickers_in(root)}
        return now

    def start(self, order: TrainingOrder) -> None:
        """Begin.

        Raises
        ------
        RequestError
            When one is running, there is nothing to learn from, or a name is wrong.
        """
        root = self._root
        there, models = pickers_in(root), self._models()
        if order.picks not in there:
            if order.picks == MANUAL:
                raise RequestError(
                    "nobody has picked by hand yet: change the picks of some micrographs and save them, then "
                    "there is something to learn from"
                )
            raise RequestError(f"there are no picks of {order.picks!r} in this session")
        if order.start not in models:
            raise RequestError(
                f"there is no model {order.start!r} to begin with; there are {', '.join(models)}"
            )
        if order.name in models:
            raise RequestError(f"there is a model {order.name!r} already; choose another name")
        # its picks would take the place of those that the model did not make
        if order.name == MANUAL or order.name in there:
            raise RequestError(f"a model cannot be called {order.name!r}, for there are such picks already")
        options = [f"--{key}={value}" for key, value in order.model_dump(exclude_none=True).items()]
        command = [*self.command, str(root.resolve()), "--json", "--no-use", *options]
        with self._lock:
            if self._now["state"] == "running":
                raise RequestError(
                    f"{self._now['order']['name']!r} is being trained; wait for it, or stop it first"
                )
            said = tempfile.TemporaryFile()  # noqa: SIM115  (the thread closes it)
            try:
                # a group of its own: it is stopped together with the processes that it has started
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    start_new_session=True,
                )
            except BaseException:
                said.close()
                raise
            self._began, self._stopped = time.monotonic(), False
            self._now = _nothing("running", order.model_dump()) | {"text": "starting"}
            self._thread = threading.Thread(
                target=self._follow, args=(self._process, said, order.name), name="weft-training", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Stop the one that runs; what it has learned is lost.

        Raises
        ------
        RequestError
            When none is running.
        """
        with self._lock:
            process, thread = self._process, self._thread
            if process is None or thread is None:
                raise RequestError("no training is running")
            self._stopped = True
        _signal(process, signal.SIGTERM)
        thread.join(_GRACE)
        if thread.is_alive():
            _signal(process, signal.SIGKILL)
            thread.join(_GRACE)

    def close(self) -> None:
        """Leave nothing behind that runs."""
        with contextlib.suppress(RequestError):
            self.stop()

    # ------------------------------------------------------------------ the thread

    def _follow(self, process: subprocess.Popen[bytes], said: IO[bytes], name: str) -> None:
        assert process.stdout is not None
        with said, process.stdout:
            for line in process.stdout:
                with contextlib.suppress(ValueError, TypeError, KeyError):  # a library's own words
                    self._take(json.loads(line))
            code = process.wait()
            said.seek(max(0, said.seek(0, os.SEEK_END) - _TOLD))
            complaint = said.read().decode("utf-8", "replace").strip().splitlines()
        changes: dict[str, Any]
        if self._stopped:
            changes = {"state": "stopped", "text": "stopped by hand"}
        elif code == 0:
            changes = self._use(name)
        else:
            why = complaint[-1].removeprefix("weft: ") if complaint else f"the process ended with code {code}"
            changes = {"state": "failed", "text": why}
        with self._lock:
            self._process = None
            self._now |= changes | {"seconds": round(time.monotonic() - self._began, 1)}

    def _take(self, told: dict[str, Any]) -> None:
        """One line of what the process tells."""
        with self._lock:
            if "say" in told:
                self._now["text"] = str(told["say"])
            elif "left_out" in told:
                self._now["left_out"].append(str(told["left_out"]))
            elif "step" in told:
                step, steps = int(told["step"]), int(told["steps"])
                self._now["steps"] = steps
                self._now["text"] = f"step {step} of {steps}"
                self._now["history"].append({"step": step} | {key: told[key] for key in _NUMBERS})
            elif "model" in told:
                self._now["text"] = f"{told['particles']} particles in {told['micrographs']} micrographs"

    def _use(self, name: str) -> dict[str, Any]:
        """Let the new model pick."""
        try:
            self._manager.change_settings({"picking.model": name})
        except (WeftError, OSError) as error:
            _log.error("picking.model = %s: %s", name, error)
            return {
                "state": "failed",
                "text": f"the model is there, but picking.model could not be set: {error}",
            }
        learned = self._now["text"]
        return {"state": "done", "text": f"{name} has learned from {learned}, and picks from now on"}

    # ------------------------------------------------------------------ what there is

    @property
    def _root(self) -> Path:
        return self._manager.session.root

    def _models(self) -> list[str]:
        folder = self._root / MODELS
        own = sorted(path.stem for path in folder.glob("*.safetensors")) if folder.is_dir() else []
        return [DEFAULT, *(name for name in own if name != DEFAULT)]


def _nothing(state: str, order: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "state": state,
        "order": order,
        "text": "",
        "left_out": [],
        "steps": None,
        "history": [],
        "seconds": None,
    }


def _signal(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
