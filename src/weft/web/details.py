"""What one item's page shows, made from its record: tracks, defocus, curves, steps, notes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from weft.defocus.micrograph import CTFModel
from weft.micrographs.deconvolution import DeconvolutionSettings
from weft.movies.motion import MotionModel
from weft.physics.optics import Optics
from weft.session.plan import StepState
from weft.session.records import Record
from weft.web.images import Deconvolution

__all__ = [
    "Missing",
    "curve",
    "deconvolution",
    "defocus",
    "extent",
    "finite",
    "shape",
    "shown_curve",
    "steps",
    "tracks",
]

_TRACKS = 5  # places along each axis whose tracks are shown
_CELLS = 24  # along the longer axis of the map of defocus
_ENVELOPE = 0.05  # width of the envelope's window, of the whole curve
_RMS = math.sqrt(0.125)  # of CTF², about its mean
_BOUNDS = (-0.5, 1.5)  # noise where the rings have ended stays on the page


class Missing(Exception):
    """The item has no such result."""


def finite(values: NDArray[Any]) -> list[float | None]:
    """Numbers as JSON takes them: what is not finite becomes None."""
    return [value if math.isfinite(value) else None for value in np.asarray(values, float).tolist()]


def _model(record: Record | None, step: str) -> Mapping[str, Any]:
    done = record.steps.get(step) if record else None
    if done is None or done.status != "done" or "model" not in done.results:
        raise Missing(f"there is no result of the {step} step")
    model: Mapping[str, Any] = done.results["model"]
    return model


def _grid(extent: tuple[float, float], columns: int, rows: int) -> NDArray[np.float64]:
    """Centres of equal cells, row by row: (rows * columns, 2) Å."""
    x = (np.arange(columns) + 0.5) / columns * extent[0]
    y = (np.arange(rows) + 0.5) / rows * extent[1]
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def tracks(record: Record | None) -> dict[str, Any]:
    """Global track, and that of places all over the field.

    Raises
    ------
    Missing
    """
    model = MotionModel.from_dict(dict(_model(record, "motion")))
    local = []
    if model.local is not None and model.n_frames > 1:
        places = _grid(model.extent, _TRACKS, _TRACKS)
        found = np.asarray(model.track(places)).round(3)
        local = [
            {"at": place, "track": found[:, i].tolist()} for i, place in enumerate(places.round(1).tolist())
        ]
    shift = np.asarray(model.global_shift, dtype=np.float64).round(3)
    return {"extent": list(model.extent), "global": shift.tolist(), "local": local}


def defocus(record: Record | None) -> dict[str, Any]:
    """The surface of defocus as rows of µm.

    Raises
    ------
    Missing
    """
    model = CTFModel.from_dict(dict(_model(record, "ctf")))
    width, height = model.extent
    longest = max(width, height)
    columns, rows = (max(1, round(_CELLS * side / longest)) for side in (width, height))
    u, v, _ = model.at(_grid(model.extent, columns, rows))
    mean = (0.5e-4 * (u + v)).round(5).reshape(rows, columns)
    return {"extent": [width, height], "rows": mean.tolist()}


def curve(path: Path) -> dict[str, Any]:
    """The rotational average: its oscillations brought to the height of CTF², and the fit.

    Raises
    ------
    Missing
        When the file is not what the ctf step writes.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            k, power, background, fit, quality = (
                np.asarray(data[name], dtype=np.float64)
                for name in ("k", "power", "background", "fit", "correlation")
            )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise Missing(f"{path.name} cannot be read ({error})") from None
    return shown_curve(k, power, background, fit, quality)


def shown_curve(
    k: NDArray[np.float64],
    power: NDArray[np.float64],
    background: NDArray[np.float64],
    fit: NDArray[np.float64],
    quality: NDArray[np.float64],
) -> dict[str, Any]:
    """A rotational average without its background, its oscillations brought to the height of CTF²."""
    with np.errstate(all="ignore"):
        relative = np.nan_to_num(power / background - 1.0, nan=0.0, posinf=0.0, neginf=0.0)
    # the rings' amplitude falls by orders of magnitude: one scale would show the first rings only
    spread = np.sqrt(gaussian_filter1d(relative**2, max(2.0, _ENVELOPE * len(k)), mode="nearest"))
    floor = max(float(np.median(spread)) * 0.25, 1e-9)
    data_shown = np.clip(0.5 + relative * (_RMS / np.maximum(spread, floor)), *_BOUNDS)
    return {
        "frequency": k[1:].round(6).tolist(),
        "data": finite(data_shown[1:].round(4)),
        "fit": finite(fit[1:].round(4)),
        "quality": finite(quality[1:].round(4)),
    }


def extent(record: Record | None) -> list[float] | None:
    """Width and height of the field, Å; None before motion is known."""
    try:
        found = _model(record, "motion")["extent"]
    except (Missing, KeyError):
        return None
    return [float(found[0]), float(found[1])]


def shape(record: Record | None) -> list[int] | None:
    """Frames, rows and columns of the movie as it is read."""
    done = record.steps.get("motion") if record else None
    facts = done.results.get("movie") if done is not None else None
    frames = done.results.get("metrics", {}).get("frames") if done is not None else None
    if not facts or frames is None:
        return None
    return [int(frames), *(int(n) for n in facts["shape"])]


def notes(record: Record | None) -> list[str]:
    """What was remarkable about the file."""
    out: list[str] = []
    for step in record.steps.values() if record else ():
        for value in step.results.values():
            if isinstance(value, Mapping):
                out += [str(note) for note in value.get("notes", ())]
    return out


def error(record: Record | None) -> str | None:
    """Why it failed; None where nothing did."""
    for step in record.steps.values() if record else ():
        if step.error is not None:
            return step.error.message
    return None


def steps(record: Record | None, states: Mapping[str, StepState]) -> list[dict[str, Any]]:
    """How every step stands, and the settings that it used."""
    out = []
    for name, state in states.items():
        done = record.steps.get(name) if record else None
        out.append(
            {
                "name": name,
                "state": state.state,
                "reason": state.reason,
                "seconds": record.timings.get(name) if record else None,
                "settings": {key: dict(values) for key, values in (done.settings if done else {}).items()},
            }
        )
    return out


def deconvolution(
    record: Record | None,
    strength: float,
    falloff: float | None,
    highpass: float | None,
    *,
    denoised: bool = False,
) -> Deconvolution | None:
    """What the deconvolution of an item's average, or of its denoised copy, needs; None if it has been done.

    Raises
    ------
    Missing
        When the CTF is not known.
    """
    model = CTFModel.from_dict(dict(_model(record, "ctf")))
    assert record is not None
    # those that the fit has used, whatever weft.toml says by now
    used = record.steps["ctf"].settings["input"]
    pixel_size = float(record.metrics["pixel_size"])
    if denoised:
        about = record.steps["denoise_micrograph"].results["denoised"]
        if about["deconvolved"]:
            return None
        pixel_size = float(about["pixel_size"])
    optics = Optics(pixel_size, float(used["voltage"]), float(used["cs"]), float(used["amplitude"]))
    given: dict[str, Any] = {"strength": strength, "falloff": falloff, "highpass": highpass}
    return Deconvolution(
        model.mean,
        optics,
        model.phase_shift,
        DeconvolutionSettings(**{key: value for key, value in given.items() if value is not None}),
    )
