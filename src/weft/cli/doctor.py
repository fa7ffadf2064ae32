"""weft doctor."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from weft.cli.options import JsonOption

app = typer.Typer(rich_markup_mode=None, add_completion=False)

State = Literal["ok", "note", "bad"]

_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "mrcfile",
    "tifffile",
    "imagecodecs",
    "gemmi",
    "pydantic",
    "typer",
    "rich",
    "distributed",
    "numba",
)


class Finding(NamedTuple):
    """One thing that was looked at."""

    state: State
    name: str
    text: str


@app.command()
def doctor(
    folder: Annotated[Path, typer.Argument(help="Where sessions will lie: its disk is looked at.")] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Check this computer and this installation. Exit code 1 where something would not work."""
    import json

    findings = []
    for finding in _examine(folder):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{finding.state:<5}{finding.name:<12}{finding.text}")
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=1, ensure_ascii=False))
    raise typer.Exit(1 if any(finding.state == "bad" for finding in findings) else 0)


def _examine(folder: Path) -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    yield Finding("ok" if good else "bad", "python", f"{platform.python_version()} ({sys.executable})")
    yield from _packages()
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    yield Finding("ok" if memory > 6 else "note", "machine", f"{cores} cores, {memory:.0f} GB memory")
    yield _torch(cores)
    yield _cuda()
    yield _fft()
    yield from _disk(folder)
    relion = shutil.which("relion_run_motioncorr")
    yield Finding(
        "ok" if relion else "note", "relion", relion or "not found; only tests and benchmarks use it"
    )


def _packages() -> Iterator[Finding]:
    missing, found = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("bad", "packages", f"missing: {', '.join(missing)}; install Weft again with pip")
    yield Finding("ok", "packages", ", ".join(found))


def _torch(cores: int) -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("bad", "torch", f"cannot be imported: {error}")
    threads = torch.get_num_threads()
    state: State = "ok" if threads <= cores else "note"
    return Finding(state, "torch", f"{torch.__version__}, {threads} threads for {cores} cores")


def _cuda() -> Finding:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "torch was built without it" if built is None else f"built for CUDA {built}, but no GPU answers"
        return Finding("note", "cuda", f"not used: {why}")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Finding("ok", "cuda", ", ".join(names))


def _fft() -> Finding:
    import torch

    from weft.physics.fourier import rfft2

    image = torch.zeros(2048, 2048)
    rfft2(image)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        rfft2(image)
        times.append(time.perf_counter() - begin)
    best = min(times)
    # a 3838×3710 frame has 3.5 times as many pixels
    state: State = "ok" if best < 0.2 else "note"
    text = f"{best * 1e3:.0f} ms for 2048×2048: about {best * 140:.1f} s for a 3838×3710×40 movie"
    return Finding(state, "fft", text)


def _disk(folder: Path) -> Iterator[Finding]:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    state: State = "bad" if free < 1e9 else "note" if free < 50e9 else "ok"
    yield Finding(state, "disk", f"{free / 1e9:.0f} GB free at {place}")
    if not os.access(place, os.W_OK):
        yield Finding("bad", "disk", f"{place} cannot be written to")
