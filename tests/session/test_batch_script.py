"""The scripts that start workers: what shells, SLURM and dask make of them."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from weft.errors import SettingsError
from weft.session.batch_script import (
    WorkerRequest,
    explain,
    scheduler_command,
    slurm_script,
    worker_command,
)


@pytest.fixture
def request_of_four(tmp_path: Path) -> WorkerRequest:
    return WorkerRequest(tmp_path / "my session's #1", nodes=4, cores=6, gpus=0, hours=12)


def test_the_script_is_one_that_a_shell_understands(request_of_four: WorkerRequest) -> None:
    script = slurm_script(request_of_four)
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    assert "#SBATCH --ntasks=4\n#SBATCH --cpus-per-task=6\n" in script
    assert "--time=12:00:00" in script
    assert "gpus" not in script
    assert script.rstrip().endswith(worker_command(request_of_four))
    words = shlex.split(worker_command(request_of_four))
    assert words[words.index("--scheduler-file") + 1] == str(request_of_four.scheduler_file)
    assert "OMP_NUM_THREADS=6" in words
    with_gpus = slurm_script(WorkerRequest(Path("/s"), gpus=1))
    assert "#SBATCH --gpus-per-task=1\n" in with_gpus


def test_a_template_is_filled_in_and_its_own_braces_stay(
    request_of_four: WorkerRequest, tmp_path: Path
) -> None:
    template = tmp_path / "pbs.sh"
    template.write_text("#PBS -l ncpus={cores}\nfor i in ${LIST[@]}; do {command} & done\n")
    script = slurm_script(request_of_four, template)
    assert script.startswith("#PBS -l ncpus=6\nfor i in ${LIST[@]}; do env OMP_NUM_THREADS=6")
    template.write_text("nothing")
    with pytest.raises(SettingsError, match=r"has no \{command\}"):
        slurm_script(request_of_four, template)
    with pytest.raises(SettingsError, match="cannot be read"):
        slurm_script(request_of_four, tmp_path / "missing.sh")


def test_the_explanation_holds_all_commands(request_of_four: WorkerRequest) -> None:
    text = explain(request_of_four)
    for command in (scheduler_command(request_of_four), worker_command(request_of_four), "weft live"):
        assert command in text


def test_dask_knows_the_options(request_of_four: WorkerRequest) -> None:
    """They change between dask's versions."""
    for command in (scheduler_command(request_of_four), worker_command(request_of_four)):
        words = shlex.split(command)
        module = words[words.index("-m") + 1]
        program = words[words.index("-m") - 1]
        said = subprocess.run([program, "-m", module, "--help"], capture_output=True, text=True, timeout=60)
        for word in words[words.index(module) + 1 :]:
            if word.startswith("--"):
                assert word in said.stdout
