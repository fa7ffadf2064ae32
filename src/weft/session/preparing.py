"""Preparing one micrograph: from its file to the prepared file, with everything that has to be known of it.

Used by the step of a session and by `weft preprocess`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch

from weft.errors import FormatError, SettingsError, WeftError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes
from weft.micrographs.comparison import comparison
from weft.micrographs.preprocessing import Preprocessed, PreprocessSettings, preprocess
from weft.movies.source import open_movie
from weft.session.records import FileIdentity, Record, RecordStore, StepError, StepRecord, fingerprint
from weft.session.step import plain_values
from weft.session.work import Outcome, Task, resolve_device, set_threads

__all__ = ["describe", "facts_of", "fingerprint_of", "prepare", "words", "write_micrograph"]

STEP = "preprocess"
#: Raised when the same settings give another result than before.
VERSION = 1


def words(settings: PreprocessSettings) -> list[str]:
    """What the settings do, an operation a phrase, in order."""
    s = settings

    def edge(name: str) -> str:
        length = getattr(s, f"{name}_angstrom")
        return f"{length:g} Å" if length is not None else f"{getattr(s, name):g} /px"

    phrases: dict[str, Callable[[], str]] = {
        "crop": lambda: f"{s.crop} pixels cropped from every border",
        "log": lambda: f"logarithm {s.log_a:g} - {s.log_b:g} ln(x + {s.log_c:g})",
        "bad_pixels": lambda: f"pixels beyond {s.bad_pixels:g} standard deviations replaced",
        "invert": lambda: "contrast inverted",
        "downsample": lambda: f"downsampled by {s.downsample:g}",
        "denoise": lambda: f"denoised by total variation ({s.denoise} rounds)",
        "gaussian": lambda: f"Gaussian filter of {s.gaussian:g} px",
        "highpass": lambda: f"high-pass at {edge('highpass')}",
        "lowpass": lambda: f"low-pass at {edge('lowpass')}",
        "normalize": lambda: "normalised to mean 0 and standard deviation 1",
    }
    return [phrases[name]() for name in s.operations()] + (["as Xmipp does"] if s.xmipp_compatible else [])


def facts_of(done: Preprocessed) -> dict[str, Any]:
    """Plain numbers for a record."""
    y, x = done.pixel_size
    return {
        "pixel_size": (x * y) ** 0.5,
        "pixel_size_y": y,
        "pixel_size_x": x,
        "factor_y": done.factor[0],
        "factor_x": done.factor[1],
        "crop": done.crop,
        "height": done.image.shape[0],
        "width": done.image.shape[1],
        **done.facts,
    }


def write_micrograph(
    path: Path, done: Preprocessed, settings: PreprocessSettings, *, float16: bool, labels: Sequence[str] = ()
) -> None:
    """Write an MRC file with the true pixel size of each axis, and what was done in its labels."""
    y, x = done.pixel_size
    said = "; ".join(words(settings))
    ours = [said[i : i + 80] for i in range(0, len(said), 80)][:4]
    kept = [label for label in labels if label.strip() and not label.startswith("Weft")]
    mrc.write(
        path,
        done.image.cpu().numpy(),
        (x, y, y),
        dtype=np.float16 if float16 else np.float32,
        labels=[*kept[: 9 - len(ours)], *ours],
    )


def fingerprint_of(task: Task, source: FileIdentity) -> str:
    """What the result depends on."""
    return fingerprint(
        {"step": STEP, "version": VERSION, "settings": task.settings, "source": source.content}
    )


def prepare(task: Task) -> Outcome:
    """The task of a worker: one micrograph of a folder."""
    start = time.perf_counter()
    set_threads(task.threads)
    root = Path(task.root)
    store = RecordStore(root)

    def ended(error: str = "") -> Outcome:
        step = STEP if error else ""
        return Outcome(task.item, () if error else (STEP,), error, step, time.perf_counter() - start)

    try:
        source = FileIdentity.of(task.source)
    except OSError as error:
        return ended(f"{task.source}: cannot be read ({error.strerror}); bring it back.")
    expected = fingerprint_of(task, source)
    record = Record(task.item, task.kind, source)
    old = store.read(task.item)
    if old is not None and STEP in old.steps:
        # its files are about to change: until they have, no record may vouch for them
        store.path(task.item).unlink()
    try:
        metrics, outputs = _prepare_file(task, root)
    except Exception as error:
        failure = StepError.of(error)
        if not isinstance(error, WeftError):
            log = root / "logs" / f"{task.item}.log"
            log.write_text(traceback.format_exc(), encoding="utf-8")
            message = f"{task.source}: {failure.type}: {failure.message} (details in {log.relative_to(root)})"
            failure = replace(failure, message=message)
        elif task.source not in failure.message:
            failure = replace(failure, message=f"{task.source}: {failure.message}")
        store.write(record.with_step(STEP, StepRecord("failed", expected, task.settings, error=failure)))
        return ended(failure.message)
    made = StepRecord("done", expected, task.settings, {"metrics": plain_values(metrics)}, outputs)
    store.write(record.with_step(STEP, made, time.perf_counter() - start))
    return ended()


def _prepare_file(task: Task, root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    settings = PreprocessSettings.model_validate(task.settings[STEP])
    extra = task.settings["input"]
    with open_movie(task.source) as source:
        info = source.info
        if len(source) != 1:
            raise FormatError(
                task.source,
                f"it holds {len(source)} images, a micrograph has one; movies are for `weft new`, `weft run`",
            )
        image = source.read(0)
    labels: tuple[str, ...] = ()
    if info.format == "mrc":
        labels = mrc.read_header(task.source).labels
    stated = extra["pixel_size"] or info.pixel_size
    in_angstrom = settings.highpass_angstrom is not None or settings.lowpass_angstrom is not None
    if stated is None and in_angstrom:
        raise SettingsError(
            f"{task.source}: a cut-off in Å needs the pixel size, which the file does not state; "
            "give --pixel-size"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(image)).to(resolve_device(task.device))
    done = preprocess(tensor, settings, stated or 0.0)
    outputs = {"micrograph": f"{task.item}.mrc"}
    write_micrograph(
        root / outputs["micrograph"], done, settings, float16=bool(extra["float16"]), labels=labels
    )
    if extra["pictures"]:
        outputs["picture"] = f"pictures/{task.item}.png"
        picture = comparison(tensor.float(), done.image, float(np.prod(done.factor)) ** 0.5, done.crop)
        (root / "pictures").mkdir(exist_ok=True)
        atomic_write_bytes(root / outputs["picture"], bytes(imagecodecs.png_encode(picture)))
    return facts_of(done), outputs


def describe(settings: PreprocessSettings, records: Sequence[Record]) -> str:
    """What was done to a set, for people."""
    done = [r.steps[STEP] for r in records if STEP in r.steps and r.steps[STEP].status == "done"]
    failed = [r for r in records if STEP in r.steps and r.steps[STEP].status == "failed"]
    lines = [f"{len(done)} micrograph{'' if len(done) == 1 else 's'} prepared", "operations, in this order:"]
    lines += [f"  {number}. {text}" for number, text in enumerate(words(settings), 1)]
    metrics = [step.results["metrics"] for step in done]
    sizes = sorted({(m["width"], m["height"], round(m["pixel_size"], 4)) for m in metrics})
    for width, height, pixel in sizes[:5]:
        scale = f", {pixel:g} Å a pixel" if pixel else ", pixel size unknown (the inputs state none)"
        lines.append(f"now {width}×{height}{scale}")
    for key, text in (("bad_pixels", "bad pixels"), ("unloggable", "pixels without a logarithm")):
        shares = [m[key] for m in metrics if key in m]
        if shares:
            lines.append(
                f"{text}: {100 * np.mean(shares):.3g} % on average, {100 * max(shares):.3g} % at most"
            )
    for record in failed:
        error = record.steps[STEP].error
        lines.append(f"failed: {record.item}: {error.message if error else ''}")
    return "\n".join(lines)
