"""Denoising of simulated micrographs, beside topaz denoise and a low-pass, against the truth without noise.

    python benchmarks/denoising.py [--sets 3] [--micrographs 4] [--topaz "python -m topaz.main"] [--train 400]

Sets are micrographs of one structure that the default model has never seen, at different defoci, doses and
thickness of ice (`weft.denoising.pretraining.simulated_halves`). Everything is compared on Weft's grid of
5 Å, both as it is and deconvolved (the truth, too). PSNR is that after the best linear scale, in units of the
range between the truth's 0.1 and 99.9 percentiles; the Gaussian low-pass is chosen for each image by the
truth.

Fourier ring correlations with the truth are taken in rings of 1/640 Å^-1 up to the first zero of the CTF,
and their differences to the input's with the standard error that a ring's number of coefficients leaves.
`weft trained` has learnt from the halves of its set, beginning with the default model. topaz gets the average
of both halves at 2.5 Å a pixel and at 5 Å; its own training has seen real micrographs, not these.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from weft.denoising.applying import predicted
from weft.denoising.micrographs import (
    ImageCTF,
    MicrographTrainingSettings,
    default_model,
    denoise_micrograph,
    prepared,
    train_on_micrographs,
)
from weft.denoising.mixing import Pair
from weft.denoising.pretraining import SimulatedHalves, simulated_halves
from weft.formats import mrc
from weft.micrographs.deconvolution import DeconvolutionSettings
from weft.physics import fourier
from weft.physics.ctf import ctf

FIRST_SEED = 900_000  # the default model has seen 0, 1, 2 ...
RING = 640.0  # Å
GRID = 5.0

Images = dict[str, torch.Tensor]


def micrographs(number: int, count: int) -> list[SimulatedHalves]:
    """A set: one structure, different in all else."""
    return [
        simulated_halves(FIRST_SEED + 100 * (number + 1) + i, structure=FIRST_SEED + number, coverage=0.2)
        for i in range(count)
    ]


def first_zero(found: ImageCTF) -> float:
    """1/Å, of the mean defocus."""
    k = torch.linspace(0.0, 0.5 / GRID, 20001, dtype=torch.float64)[1:]
    values = ctf(k * k, 0.5 * (found.defocus[0] + found.defocus[1]), found.optics, found.phase_shift)
    below = (values <= 0.0).nonzero()
    return float(k[below[0, 0]]) if len(below) else float(k[-1])


def ring_correlation(
    a: torch.Tensor, b: torch.Tensor, pixel_size: float, to: float, beside: torch.Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of a with b, the mean left out: one value for each ring below the frequency `to`.

    The second array is the standard error of its difference to what another image has with b, which a
    ring's finite number of coefficients leaves (the delta method: how much each of them adds).
    """
    shape = (a.shape[0], a.shape[1])
    ky, kx = fourier.frequencies(shape, pixel_size)
    ring = (torch.sqrt(ky**2 + kx**2) * RING).long().flatten()
    # a half-plane holds one of each pair, but for the columns that have none
    pairs = torch.full((shape[0], shape[1] // 2 + 1), 2.0, dtype=torch.float64)
    pairs[:, 0] = 1.0
    pairs[:, -1] = 1.0 if shape[1] % 2 == 0 else 2.0
    pairs = pairs.flatten()
    count = int(ring.max()) + 1

    def sums(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.float64).index_add_(0, ring, values)

    fb = fourier.rfft2(b - b.mean()).flatten()
    bb = pairs * fb.abs().double() ** 2

    def correlation(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fa = fourier.rfft2(image - image.mean()).flatten()
        ab, aa = pairs * (fa * fb.conj()).real.double(), pairs * fa.abs().double() ** 2
        cross, powers = sums(ab), [sums(v).clamp(min=1e-30) for v in (aa, bb)]
        found = cross / (powers[0] * powers[1]).sqrt()
        root = (powers[0] * powers[1]).sqrt()[ring]
        shares = 0.5 * (aa / powers[0][ring] + bb / powers[1][ring])
        return found, ab / root - found[ring] * shares

    found, each = correlation(a)
    other = 0.0 * each if beside is None else correlation(beside)[1]
    error = sums((each - other) ** 2).sqrt()
    rings = max(1, int(to * RING))
    return np.asarray(found)[:rings], np.asarray(error)[:rings]


def psnr(found: torch.Tensor, truth: torch.Tensor) -> float:
    """dB, after the best linear scale."""
    a, b = found.double().flatten(), truth.double().flatten()
    a, b = a - a.mean(), b - b.mean()
    error = (b - a * (a @ b) / (a @ a)).square().mean()
    low, high = np.percentile(truth.numpy(), (0.1, 99.9))
    return float(10.0 * np.log10((high - low) ** 2 / float(error)))


def best_gaussian(image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The low-pass that comes closest to the truth."""
    shape = (image.shape[0], image.shape[1])
    ky, kx = fourier.frequencies(shape)
    k2, spectrum = ky**2 + kx**2, fourier.rfft2(image)
    every = [
        fourier.irfft2(spectrum * torch.exp(-2.0 * (np.pi * sigma) ** 2 * k2), shape)
        for sigma in 0.5 * 1.25 ** np.arange(14)
    ]
    return max(every, key=lambda one: psnr(one, truth))


def topaz(command: list[str], images: Images, pixel_size: float, model: str, work: Path) -> Images:
    """What topaz denoise makes of them; what lies in `work` already is not made again."""
    given, made = (work / f"{what}_{pixel_size:g}_{model}" for what in ("given", "made"))
    given.mkdir(parents=True, exist_ok=True)
    todo = [name for name in images if not (made / f"{name}.mrc").exists()]
    for name in todo:
        mrc.write(given / f"{name}.mrc", images[name].numpy(), pixel_size)
    if todo:
        options = ["-d", "-1", "-s", "0", "-m", model, "--arch", model, "-o", str(made), "-j", "1"]
        places = [str(given / f"{name}.mrc") for name in todo]
        subprocess.run([*command, "denoise", *places, *options], check=True, capture_output=True)
    read = {name: np.array(mrc.read(made / f"{name}.mrc")[0], np.float32) for name in images}
    return {name: torch.from_numpy(image) for name, image in read.items()}


def methods(
    images: list[SimulatedHalves], options: argparse.Namespace
) -> dict[str, Callable[[SimulatedHalves, DeconvolutionSettings | None], torch.Tensor]]:
    """Everything that is compared: gives an image at 5 Å."""
    default, deconvolution = default_model(), DeconvolutionSettings()

    def average(one: SimulatedHalves) -> torch.Tensor:
        return 0.5 * (one.even + one.odd)

    def halves_of(one: SimulatedHalves, how: DeconvolutionSettings | None) -> Pair:
        return one.prepared(one.even, GRID, how), one.prepared(one.odd, GRID, how)

    def network_alone(one: SimulatedHalves, how: DeconvolutionSettings | None) -> torch.Tensor:
        image = one.prepared(average(one), GRID, how).numpy()
        return torch.cat([slab for _, slab in predicted([image], default, tile=512)])[0]

    out: dict[str, Callable[[SimulatedHalves, DeconvolutionSettings | None], torch.Tensor]] = {
        "input": lambda one, how: one.prepared(average(one), GRID, how),
        "best Gaussian": lambda one, how: best_gaussian(
            one.prepared(average(one), GRID, how), one.prepared(one.truth, GRID, how)
        ),
        "weft, network alone": network_alone,
        "weft": lambda one, how: denoise_micrograph(halves_of(one, how), default, GRID),
    }
    if options.train:
        settings = MicrographTrainingSettings(steps=options.train)
        pairs = [one.pair(GRID, deconvolution) for one in images]
        trained = train_on_micrographs(pairs, GRID, settings, deconvolution, start=default)
        out["weft trained"] = lambda one, how: denoise_micrograph(halves_of(one, how), trained, GRID)
    if options.topaz:
        fine = {one.name: average(one) for one in images}
        coarse = {one.name: prepared(average(one), one.pixel_size, GRID)[0] for one in images}
        for model in options.models:
            for size, given in ((2.5, fine), (5.0, coarse)):
                if size not in options.sizes:
                    continue
                made = topaz(shlex.split(options.topaz), given, size, model, options.work)

                def shown(
                    one: SimulatedHalves,
                    how: DeconvolutionSettings | None,
                    made: Images = made,
                    size: float = size,
                ) -> torch.Tensor:
                    ctf_of = one.ctf if how is not None else None
                    return prepared(made[one.name], size, GRID, ctf_of, how)[0]

                out[f"topaz {model}, {size:g} Å"] = shown
    return out


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sets", type=int, default=3)
    parser.add_argument("--micrographs", type=int, default=4)
    parser.add_argument(
        "--train", type=int, default=400, help="steps of the retrained model; 0 leaves it out"
    )
    parser.add_argument("--topaz", default="", help="command that runs topaz")
    parser.add_argument("--models", nargs="*", default=["unet", "unet-small"], help="of topaz")
    parser.add_argument("--sizes", nargs="*", type=float, default=[2.5, 5.0], help="Å, what topaz is given")
    parser.add_argument("--work", type=Path, help="keeps what topaz has made")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.work = given.work or Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    rows = []
    for number in range(given.sets):
        images = micrographs(number, given.micrographs)
        every = methods(images, given)
        for name, make in every.items():
            for one in images:
                for how in (None, DeconvolutionSettings()):
                    if how is None and name == "weft trained":
                        continue  # it knows deconvolved micrographs only
                    truth, found = one.prepared(one.truth, GRID, how), make(one, how)
                    frc, error = ring_correlation(
                        found, truth, GRID, first_zero(one.ctf), every["input"](one, how)
                    )
                    rows.append(
                        {
                            "set": number,
                            "micrograph": one.name,
                            "diameter": one.diameter,
                            "defocus": one.ctf.defocus[0],
                            "method": name,
                            "deconvolved": how is not None,
                            "psnr": psnr(found, truth),
                            "frc": frc.tolist(),
                            "error_of_gain": error.tolist(),
                        }
                    )
        print(f"set {number}: {images[0].diameter:.0f} Å", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows))
    report(rows)


def report(rows: list[dict]) -> None:
    """PSNR, and how the FRC compares with the input's, of every method."""
    names = list(dict.fromkeys(row["method"] for row in rows))
    base = {(r["micrograph"], r["deconvolved"]): np.array(r["frc"]) for r in rows if r["method"] == "input"}
    print("| method | PSNR | PSNR deconvolved | rings above | below by 2 errors | worst ring | mean gain |")
    print("|---|" + "--:|" * 6)
    for name in names:
        of = [row for row in rows if row["method"] == name]
        gains = np.concatenate([np.array(r["frc"]) - base[r["micrograph"], r["deconvolved"]] for r in of])
        errors = np.concatenate([r["error_of_gain"] for r in of])
        plain, deconvolved = (
            np.mean([r["psnr"] for r in of if r["deconvolved"] is how] or [np.nan]) for how in (False, True)
        )
        worst = gains.argmin()
        print(
            f"| {name} | {plain:.2f} | {deconvolved:.2f} | {np.sum(gains > 0)} of {len(gains)} | "
            f"{np.sum(gains < -2.0 * errors)} | {gains[worst]:+.4f} ± {errors[worst]:.4f} | "
            f"{gains.mean():+.4f} |"
        )
    print("\nMean FRC of all micrographs in which the ring is below the first zero (deconvolved):\n")
    longest = max(len(row["frc"]) for row in rows)
    chosen = [i for i in (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 30, 35, 40, 50, 60) if i < longest]
    print("| Å | " + " | ".join(f"{RING / (i + 0.5):.0f}" for i in chosen) + " |")
    print("|---|" + "--:|" * len(chosen))
    for name in names:
        of = [r["frc"] for r in rows if r["method"] == name and r["deconvolved"]]
        means = [np.mean([frc[i] for frc in of if len(frc) > i]) for i in chosen]
        print(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


if __name__ == "__main__":
    main()
