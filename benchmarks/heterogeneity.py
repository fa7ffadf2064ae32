"""Landscapes of particles with known classes: tomoDRGN's test data, and a session of Weft's own.

    python benchmarks/heterogeneity.py OUT [--only own|tomodrgn|warptools] [--data DATA]
        [--other clamp-core] [--particles 60] [--series 2] [--flavours relion5,warp]
        [--seeds 3] [--epochs 30] [--latent 8]

own: `weft simulate tilts` with two conformations of a particle, then only commands of Weft: new, run, export
subtomograms (of the true poses, moved as a whole to where the alignment has the specimen), vae train, vae
analyze; and `weft backproject` of each true class against both structures.

tomodrgn: 144 simulated particles of two classes, and those of one class alone. warptools: 40 real particles.

Everything runs on one thread; CPU seconds are those of whole processes. OUT keeps all files; simulation and
session are not made again. DATA is the folder of reference data (default: WEFT_REFERENCE_DATA, else
../shared/data).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from landscapes import adjusted_rand, linear_auc, mean_fsc, shell_fsc, soft_ball, two_means, user
from measuring import measure, table
from own_landscape import own

SET = "bpowell122__tomodrgn"
#: AUC that is to be reached.
ENOUGH = 0.98


def tomodrgn(out: Path, given: Any) -> list[list[dict[str, Any]]]:
    """The two classes, seed by seed; decoded class means beside the classes' maps; one class alone."""
    from weft.formats import mrc
    from weft.formats.tilt_particles import read_tilt_particles
    from weft.session.heterogeneity.run_folder import open_run

    data = given.data / "real" / SET
    star = data / "10076_both_32_sim.star"
    particles = read_tilt_particles(star)
    files = [particles.files[particles.file[i]].name for i in particles.start[:-1]]
    classes = np.array(["classE" in name for name in files], int)
    maps = [mrc.read(data / f"10076_class{name}_32.mrc")[0] for name in "DE"]
    found, means, one = [], [], []
    mask = soft_ball(particles.box, 0.75 * particles.box, 3.0)
    for seed in range(given.seeds):
        lines = _trained(star, out / f"two_classes_{seed}", seed, given)
        run = open_run(out / f"two_classes_{seed}")
        aucs = {epoch: linear_auc(run.latent(epoch).mu, classes) for epoch in run.epochs}
        reached = next((line for line in lines if aucs.get(line["epoch"], 0.0) >= ENOUGH), None)
        mu, last = run.latent().mu, run.history[-1]
        row: dict[str, Any] = {"seed": seed, "epochs": last["epoch"]}
        row |= {"ARI": adjusted_rand(two_means(mu), classes), "AUC": linear_auc(mu, classes)}
        row |= {"reconstruction loss": last["reconstruction"]}
        row |= {"epoch of AUC ≥ 0.98": reached["epoch"] if reached else None}
        row |= {"CPU s until then": reached["cpu"] if reached else None, "CPU s to the end": lines[-1]["cpu"]}
        user("vae", "analyze", run.path, log=out / f"analyze_two_classes_{seed}.log")
        row["clusters in the report"] = _clusters(run.path)
        found.append(row)
        print(row, flush=True)
        volumes = run.volumes(np.stack([mu[classes == k].mean(0) for k in range(2)]))
        for k, name in enumerate("DE"):
            same, other = (mean_fsc(volumes[k], true, mask) for true in (maps[k], maps[1 - k]))
            means.append({"seed": seed, "class": name, "own map": same, "other map": other})
        alone = out / f"one_class_{seed}"
        _trained(data / "10076_classD_32_sim.star", alone, seed, given)
        user("vae", "analyze", alone, log=out / f"analyze_one_class_{seed}.log")
        line = json.loads((alone / "analysis" / "analysis.json").read_text())["structure"]
        row = {"seed": seed, "clusters in the report": line["clusters"]}
        one.append(row | {"p, straight line": line["line"], "p, along the data": line["data"]})
    return [found, means, one]


def warptools(out: Path, given: Any) -> list[list[dict[str, Any]]]:
    """The time of training, and the back-projection's FSC with the supplied map by shell."""
    from weft.formats import mrc

    data, name = given.data / "real" / SET, "warptools_test_4-tomos_10-ptcls_box-32_angpix-12"
    source, run = data / f"{name}_optimisation_set.star", out / "warptools"
    cost = user(
        *("vae", "train", source, "--output", run, "--overwrite"),
        *("--latent", given.latent, "--epochs", given.epochs),
        log=out / "train_warptools.log",
    )
    last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    trained = {"particles": 40, "epochs": last["epoch"], "CPU (s)": cost.cpu, "memory (GB)": cost.largest}
    trained["reconstruction loss"] = last["reconstruction"]
    made = user("backproject", source, "--output", out / "warptools.mrc", log=out / "backproject.log")
    supplied = mrc.read(data / "warptools_test_box-32_angpix-12_reconstruct.mrc")[0]
    fsc = shell_fsc(mrc.read(out / "warptools.mrc")[0], supplied)
    row: dict[str, Any] = {f"shell {i} ({32 * 12 / i:.0f} Å)": float(fsc[i]) for i in range(1, 7)}
    return [[trained], [row | {"CPU (s)": made.cpu}]]


def _clusters(run: Path) -> int:
    return int(json.loads((run / "analysis" / "analysis.json").read_text())["structure"]["clusters"])


def _trained(star: Path, run: Path, seed: int, given: Any) -> list[dict[str, Any]]:
    """Epochs with the CPU seconds of the whole process at their ends."""
    log = run.with_suffix(".jsonl")
    words = [sys.executable, __file__, str(run), "--train", str(star), "--seed", str(seed)]
    words += ["--epochs", str(given.epochs), "--latent", str(given.latent)]
    measure(words, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}, log=log)
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def _train(given: Any) -> None:
    """In a process of its own; every epoch's latent coordinates are kept."""
    from weft.heterogeneity.model import NetworkSettings
    from weft.heterogeneity.training import VAETrainingSettings
    from weft.session.heterogeneity.training import TrainingProgress, train_vae

    def tell(now: TrainingProgress) -> None:
        if now.report is not None:
            print(json.dumps({"epoch": now.report.epoch, "cpu": time.process_time()}), flush=True)

    how = VAETrainingSettings(epochs=given.epochs, seed=given.seed, keep_every=1)
    network = NetworkSettings(latent=given.latent, seed=given.seed)
    train_vae(given.train, given.out, network, how, overwrite=True, progress=tell)


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    root = Path(__file__).resolve().parent.parent
    default = os.environ.get("WEFT_REFERENCE_DATA", str(root.parent / "shared" / "data"))
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--only", choices=("own", "tomodrgn", "warptools"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--other", default="clamp-core", choices=("clamp-core", "clamp-open"))
    parser.add_argument("--particles", type=int, default=60, help="in each series")
    parser.add_argument("--series", type=int, default=2)
    parser.add_argument("--flavours", type=lambda text: text.split(","), default=["relion5", "warp"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--latent", type=int, default=8)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out = given.out.absolute()
    if given.train:
        _train(given)
        return
    for name, part in (("own", own), ("tomodrgn", tomodrgn), ("warptools", warptools)):
        if given.only in (None, name):
            folder = given.out / name
            folder.mkdir(parents=True, exist_ok=True)
            for rows in part(folder, given):
                print(f"\n{table(rows)}", flush=True)


if __name__ == "__main__":
    main()
