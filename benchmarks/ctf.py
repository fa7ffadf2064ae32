"""CTF: Weft's local fit against the truth, against other programs' published values, and against the clock.

Simulated movies: defocus at 25 places of the average that Weft itself has made, and astigmatism. Real data:
eight power spectra of β-galactosidase (EMPIAR-10204, published CTFFIND values) and six micrographs of
apoferritin (EMPIAR-10146, values of an independent 2D fit). ctffind runs beside Weft where it is installed.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from cases import (
    Case,
    angle_difference,
    arguments,
    cases_of,
    machine,
    new_session,
    true_defocus,
    weft_command,
    weft_environment,
)
from limits import spectra_limit
from measuring import Usage, measure, measure_call, quietest, table

import weft
from weft.defocus.micrograph import CTFModel, CTFSettings, fit_ctf, fit_spectrum
from weft.formats import mrc
from weft.physics.optics import Optics

# torch itself is imported in functions only: weft, which comes first, tells its threads not to spin


def errors_against_truth(model: CTFModel, case: Case) -> dict[str, float | None]:
    """What the project's score reports, and the tilt of the defocus plane."""
    u, v, angle = model.at(case.places)
    difference = 0.5 * (u + v) - true_defocus(case)
    truth = case.truth
    tilt = float(np.degrees(np.arctan(np.hypot(*truth["plane"]))))
    astigmatic = truth["astig"] > 0
    return {
        "defocus_rms_A": float(np.sqrt((difference**2).mean())),
        "defocus_mean_A": float(difference.mean()),
        "astigmatism_A": float(np.mean(u - v) - truth["astig"]),
        "angle_deg": angle_difference(float(angle[0]), truth["astig_angle"]) if astigmatic else None,
        "tilt_deg": model.plane()[0] - tilt,
        "resolution_A": model.resolution,
    }


def simulated(case: Case, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Weft on the average that it makes of one movie; the CTF step alone, as a process and as a call."""
    import torch

    print(f"{case.name}: motion, then CTF", file=sys.stderr)
    root = new_session(case, scratch / f"{case.name}_session")
    words = ("run", root, "--workers", 1, "--threads", options.threads, "--device", "cpu")
    environment = weft_environment()
    measure(weft_command(*words, "--steps", "motion"), env=environment, log=scratch / "weft.log")
    number = iter(range(1000))

    def ctf_step() -> Usage:
        # any setting that changes makes the step stale
        change = ("--set", f"ctf.defocus_min={0.3 + 1e-6 * next(number)}")
        return measure(weft_command(*words, *change), env=environment, log=scratch / "weft.log")

    process = quietest(ctf_step, options.attempts)
    movie = weft.open(root)[case.movie.stem]
    pixel = float(movie.metrics["pixel_size"])
    o = case.truth["optics"]
    optics = Optics(pixel, o["kv"], o["cs"], o["amplitude"])
    image = torch.from_numpy(np.asarray(mrc.read(movie.paths["average"])[0], dtype=np.float32))
    torch.set_num_threads(options.threads)
    call = quietest(lambda: measure_call(lambda: fit_ctf(image, optics)), options.attempts)
    window = CTFSettings().window
    limit, count = spectra_limit((image.shape[0], image.shape[1]), window, options.threads)
    out = {
        "errors": errors_against_truth(movie.ctf, case),
        "process": process.to_dict(),
        "call": call.to_dict(),
        "transforms": {"count": count, "window": window, **limit.to_dict()},
    }
    if shutil.which("ctffind"):
        out["ctffind"] = ctffind(case, movie.paths["average"], pixel, scratch / f"{case.name}_ctffind")
    return out


def ctffind(case: Case, image: Path, pixel: float, folder: Path) -> dict[str, Any]:
    """ctffind 4 on the same average: one defocus for the whole of it."""
    folder.mkdir()
    o = case.truth["optics"]
    answers = [image, "diagnostic.mrc", pixel, o["kv"], o["cs"], o["amplitude"], 512, 30.0, 4.0]
    answers += [3000.0, 50000.0, 100.0, *["no"] * 8]
    script = folder / "answers"
    script.write_text("\n".join(map(str, answers)) + "\n")
    used = measure(["sh", "-c", "ctffind < answers"], cwd=folder, log=folder / "log")
    lines = (folder / "diagnostic.txt").read_text().splitlines()
    _, u, v, angle, _, _, resolution = (float(value) for value in lines[-1].split()[:7])
    mean = np.full(len(case.places), 0.5 * (u + v))
    return {
        "errors": {
            "defocus_rms_A": float(np.sqrt(((mean - true_defocus(case)) ** 2).mean())),
            "defocus_mean_A": float((mean - true_defocus(case)).mean()),
            "astigmatism_A": u - v - case.truth["astig"],
            "angle_deg": angle_difference(angle, case.truth["astig_angle"]) if case.truth["astig"] else None,
            "resolution_A": resolution,
        },
        "process": used.to_dict(),
    }


def real(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Real spectra and micrographs beside the values that come with them: ours minus theirs."""
    import torch

    answers = folder / "real" / "_answers"
    settings = CTFSettings(range_min=15.0, range_max=5.0, grid=(1, 1))
    for row in _answers(answers / "bgal_ctf.csv")[:count]:
        path = folder / "real" / "Conecsion__sppractice" / row["ps_file"]
        if not path.exists():
            continue
        power = torch.from_numpy(np.array(mrc.read(path)[0], dtype=np.float32).squeeze())
        optics = Optics(float(row["ps_pixel_A"]), float(row["kV"]), float(row["Cs_mm"]), float(row["amp"]))
        stated = (row["true_defocusU_A"], row["true_defocusV_A"], row["true_angle_deg"])
        found, usage = _timed(lambda p=power, o=optics: fit_spectrum(p, o, settings))  # type: ignore[misc]
        # the fit's own default range must not need to be told
        free, longer = _timed(lambda p=power, o=optics: fit_spectrum(p, o, CTFSettings(grid=(1, 1))))  # type: ignore[misc]
        name = row["micrograph"].removesuffix("_frameImage")
        yield _beside(name, found, stated, usage, row["true_maxres_A"], "15–5 Å")
        yield _beside(name, free, stated, longer, row["true_maxres_A"], "default")
    pictures = {path.name: path for path in (folder / "real").glob("jianlin*/**/*.png")}
    for row in _answers(answers / "apoferritin_ctf.csv")[:count]:
        if row["micrograph"] not in pictures:
            continue
        image = torch.from_numpy(_grey(pictures[row["micrograph"]]))
        optics = Optics(1.5, 300.0, 2.7, 0.07)
        found, usage = _timed(lambda i=image, o=optics: fit_ctf(i, o))  # type: ignore[misc]
        stated = (row["U_A"], row["V_A"], row["angle_deg"])
        weak = float(row["cc2d"]) <= 0.12
        yield _beside(row["micrograph"].split(".bin")[0], found, stated, usage, None, "default") | {
            "note": "stated value is weak (cc2d ≤ 0.12)" if weak else None
        }


def _answers(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _grey(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    import imagecodecs

    image = np.asarray(imagecodecs.png_decode(path.read_bytes()))
    return (image if image.ndim == 2 else image[..., 0]).astype(np.float32)


def _timed(call: Callable[[], CTFModel]) -> tuple[CTFModel, Usage]:
    found: list[CTFModel] = []
    usage = measure_call(lambda: found.append(call()))
    return found[0], usage


def _beside(
    name: str,
    model: CTFModel,
    stated: tuple[str, str, str],
    usage: Usage,
    resolution: str | None,
    fitted: str,
) -> dict[str, Any]:
    u, v, angle = (float(value) for value in stated)
    return {
        "image": name,
        "range": fitted,
        "stated defocus Å": 0.5 * (u + v),
        "defocus − stated Å": model.defocus - 0.5 * (u + v),
        "astigmatism − stated Å": model.astigmatism - (u - v),
        "angle off °": angle_difference(model.angle, angle),
        "resolution Å": model.resolution,
        "stated resolution Å": float(resolution) if resolution else None,
        "score": model.score,
        "CPU s": usage.cpu,
    }


def report(movies: dict[str, dict[str, Any]], images: list[dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    accuracy, cost = [], []
    for name, found in movies.items():
        for program in ("Weft", "ctffind"):
            part = found if program == "Weft" else found.get("ctffind")
            if part is None:
                continue
            e = part["errors"]
            accuracy.append(
                {
                    "movie": name,
                    "program": program,
                    "defocus RMS Å": e["defocus_rms_A"],
                    "mean Å": e["defocus_mean_A"],
                    "astigmatism Å": e["astigmatism_A"],
                    "angle °": e["angle_deg"],
                    "tilt °": e.get("tilt_deg"),
                    "resolution Å": e["resolution_A"],
                }
            )
            p, call = part["process"], part.get("call", {})
            cost.append(
                {
                    "movie": name,
                    "program": program,
                    "process CPU s": p["cpu"],
                    "wall s": p["wall"],
                    "largest process GB": p["largest"],
                    "all processes GB": p["together"],
                    "call alone CPU s": call.get("cpu"),
                    "call wall s": call.get("wall"),
                    "its FFTs CPU s": part.get("transforms", {}).get("cpu"),
                    "others' cores": p["others"],
                }
            )
    parts = ["Errors on simulated movies (found minus true, on Weft's own averages):", table(accuracy)]
    parts += ["The CTF step as a whole process, and the call alone:", table(cost)]
    if images:
        parts += ["Real spectra and micrographs with stated values:", table(images)]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    options = arguments(__doc__)
    if not shutil.which("ctffind"):
        print("ctffind is not on the PATH: only Weft is measured", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="weft-benchmark-") as temporary:
        scratch = options.work.resolve() if options.work else Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        about = machine(options.threads)
        movies = {case.name: simulated(case, options, scratch) for case in cases_of(options, scratch)}
        images = list(real(options.reference, 2 if options.quick else 100))
    print("  ".join(f"{key}: {value}" for key, value in about.items()), end="\n\n")
    print(report(movies, images))
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "ctf": movies, "real": images}, indent=1))


if __name__ == "__main__":
    main()
