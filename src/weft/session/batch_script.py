"""How dask workers are started by hand or by a queueing system: the scripts."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from weft.errors import SettingsError

__all__ = ["WorkerRequest", "explain", "scheduler_command", "slurm_script", "worker_command"]

_SLURM = """\
#!/bin/bash
# Workers for the Weft session {session}
# Submit as often as you like, while the scheduler runs; each job brings more workers.
#SBATCH --job-name=weft-workers
#SBATCH --ntasks={nodes}
#SBATCH --cpus-per-task={cores}
#SBATCH --mem-per-cpu=2G
#SBATCH --time={hours}:00:00
#SBATCH --signal=TERM@60
{gpu_lines}#SBATCH --output={session_unquoted}/logs/workers-%j.log

# a worker that the node kills is replaced, and its movie tried again
srun {command}
"""

#: Of the scheduler: one death of a worker is told at once, so that Weft counts them.
_SCHEDULER_SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
}


@dataclass(frozen=True)
class WorkerRequest:
    """Which workers are wanted.

    Attributes
    ----------
    root : Path
        The session; every node must see it, and the movies, at the same place.
    nodes : int
        Worker processes.
    cores, gpus : int
        Of each.
    hours : int
    """

    root: Path
    nodes: int = 4
    cores: int = 4
    gpus: int = 0
    hours: int = 24

    @property
    def scheduler_file(self) -> Path:
        """By which workers and managers find the scheduler."""
        return self.root / "logs" / "scheduler.json"


def _program(name: str) -> str:
    return f"{shlex.quote(sys.executable)} -m distributed.cli.{name}"


def scheduler_command(request: WorkerRequest, timeout: float = 300.0) -> str:
    """Starts the scheduler, on any machine that all nodes reach.

    Parameters
    ----------
    timeout : float
        Seconds after which a silent worker is given up.
    """
    settings = _SCHEDULER_SETTINGS | {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{timeout:g}s"}
    given = " ".join(f"{name}={value}" for name, value in settings.items())
    file = shlex.quote(str(request.scheduler_file))
    return f"{given} {_program('dask_scheduler')} --scheduler-file {file} --dashboard-address 127.0.0.1:0"


def worker_command(request: WorkerRequest) -> str:
    """Starts one worker on the node where it is called."""
    threads = " ".join(f"{name}_NUM_THREADS={request.cores}" for name in ("OMP", "MKL", "OPENBLAS"))
    file = shlex.quote(str(request.scheduler_file))
    # one task at a time, which uses all cores; memory is the queueing system's business
    return (
        f"env {threads} OMP_WAIT_POLICY=PASSIVE {_program('dask_worker')} --scheduler-file {file} "
        "--nworkers 1 --nthreads 1 --memory-limit 0 --no-dashboard --death-timeout 300 "
        "--local-directory /tmp"
    )


def slurm_script(request: WorkerRequest, template: Path | None = None) -> str:
    """The batch script.

    Parameters
    ----------
    template : Path, optional
        A script with ``{command}`` and, where wanted, ``{scheduler_file}``, ``{session}``, ``{nodes}``,
        ``{cores}``, ``{gpus}``, ``{hours}``; other braces stay as they are.

    Raises
    ------
    SettingsError
        When the template cannot be read, or has no ``{command}``.
    """
    text = _SLURM
    if template is not None:
        try:
            text = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"--template {template}: it cannot be read ({error}).") from None
        if "{command}" not in text:
            raise SettingsError(f"--template {template}: it has no {{command}}, which starts a worker.")
    values = {
        "command": worker_command(request),
        "scheduler_file": shlex.quote(str(request.scheduler_file)),
        "session_unquoted": str(request.root),
        "session": shlex.quote(str(request.root)),
        "gpu_lines": f"#SBATCH --gpus-per-task={request.gpus}\n" if request.gpus else "",
        "nodes": str(request.nodes),
        "cores": str(request.cores),
        "gpus": str(request.gpus),
        "hours": str(request.hours),
    }
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def explain(request: WorkerRequest) -> str:
    """The three steps by hand."""
    session = shlex.quote(str(request.root))
    file = shlex.quote(str(request.scheduler_file))
    return (
        "1. Start a scheduler, on a machine that every node reaches, and leave it running:\n\n"
        f"   {scheduler_command(request)}\n\n"
        "2. Start workers, by hand on every node, or with the script of "
        f"`weft workers {session} --slurm`:\n\n"
        f"   {worker_command(request)}\n\n"
        "3. Hand them work:\n\n"
        f"   weft live {session} --scheduler {file}\n"
        f"   weft run {session} --scheduler {file}\n\n"
        "Every node must see the session and the movies at the same places, and have the same Weft."
    )
