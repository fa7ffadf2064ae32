"""weft candidates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from weft.cli.options import settings_options
from weft.matching.candidates import CandidateSettings

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
@settings_options(CandidateSettings, into="settings", skip=("number",))
def candidates(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SESSION | JOB.json ... | STAR ...",
            help="A session, job files of `weft match`, or with --merge the files to be joined.",
            show_default=False,
        ),
    ],
    template: Annotated[
        str | None,
        typer.Option(metavar="STEM", help="Name of the template's file, without folder and ending."),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option("-n", "--number", min=1, help="Most candidates of one tomogram [default 1000]."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Map: only where it is above 0.5. {name} in it stands for the item's name."),
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="GLOB", help="Only items whose name matches.")] = None,
    flavour: Annotated[
        str, typer.Option(help="Whose columns: relion5, relion4, relion3, warp or dynamo.")
    ] = "relion5",
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Estimate recall and false discoveries, and draw them.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Join candidate files into one.")] = False,
    distance: Annotated[
        float | None, typer.Option(metavar="A", min=0.0, help="--merge: of two nearer ones the better stays.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="--merge: the STAR file to write.")
    ] = None,
    settings: Any = None,
) -> None:
    """Take candidates from finished searches; no search is repeated.

    Writes matching/ITEM_STEM_candidates.star and, for all items together, matching/STEM_candidates.star.
    """
    from typing import get_args

    from weft.errors import RequestError
    from weft.formats.tomo_particles import Flavour

    if flavour not in get_args(Flavour):
        raise RequestError(f"--flavour {flavour}: it is one of {', '.join(get_args(Flavour))}.")
    if merge:
        _merge(sources, output, distance, flavour)
        return
    chosen = CandidateSettings(**(settings if number is None else {**settings, "number": number}))
    raise typer.Exit(_take(sources, template, chosen, mask, only, flavour, estimate))


def _merge(sources: list[Path], output: Path | None, distance: float | None, flavour: str) -> None:
    from weft.errors import RequestError
    from weft.formats.tomo_particles import write_tomo_particles
    from weft.session.candidate_files import merge_files

    if output is None or distance is None or len(sources) < 2:
        raise RequestError("--merge needs two or more STAR files, --output FILE and --distance A.")
    if flavour != "relion5":
        raise RequestError("--merge writes RELION 5's columns; take candidates again for others.")
    merged = merge_files(sources, distance)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_tomo_particles(output, merged)
    typer.echo(f"{len(merged)} candidates in {len(set(merged.tomogram))} tomograms: {output}")


def _take(
    sources: list[Path],
    template: str | None,
    settings: CandidateSettings,
    mask: Path | None,
    only: str | None,
    flavour: Any,
    estimate: bool,
) -> int:
    from fnmatch import fnmatchcase

    from weft.errors import ItemError, RequestError
    from weft.session.candidate_estimates import with_discovery_limit, write_estimate
    from weft.session.candidate_files import find_jobs, job_statistics, write_candidates, write_combined
    from weft.session.match_job import MatchJob

    paths: list[Path] = []
    for source in sources:
        if source.is_dir():
            paths += find_jobs(source, template)
        elif source.is_file():
            paths.append(source)
        else:
            raise RequestError(f"{source}: there is no such session or job file.")
    code, stems, folders = 0, dict[str, None](), dict[Path, None]()
    for path in paths:
        job = MatchJob.read(path)
        if only and not fnmatchcase(job.name, only):
            continue
        try:
            these = with_discovery_limit(path, settings, mask=mask)
            found = write_candidates(path, these, mask=mask, flavour=flavour)
            lowest = these.cut_off or _lowest(job_statistics(job, path), these)
            typer.echo(f"{job.name}: {len(found)} candidates from {lowest:.4g} up")
            if estimate:
                figure, result = write_estimate(path, settings, mask=mask)
                typer.echo(f"{job.name}: {_words(result, lowest)}; {figure}")
        except ItemError as error:
            typer.echo(f"failed: {job.name}: {error}")
            code = 1
            continue
        stems |= {one.stem: None for one in job.templates if template is None or one.stem == template}
        folders[path.parent] = None
    if not stems and not code:
        raise RequestError("no search matches: look at the names with `weft status`.")
    for folder in folders:
        for stem in stems:
            combined = write_combined(folder, stem, flavour)
            if combined is not None:
                typer.echo(f"{len(combined[1])} candidates: {combined[0]}")
    return code


def _lowest(statistics: Any, settings: CandidateSettings) -> float:
    from weft.matching.candidates import cut_off

    return cut_off(statistics, settings)


def _words(result: Any, lowest: float) -> str:
    """What an estimate says, in one line."""
    if not result.particles > 0.0:
        return "its scores look like background only"
    recall, wrong = result.at(lowest)
    here = (
        f"recall {100 * recall:.0f} %, false discoveries {100 * wrong:.1f} % at this cut-off"
        if recall == recall
        else "this cut-off is below the candidates that the estimate has looked at"
    )
    best = f"best F1 {result.f1.max():.2f} at {result.best:.4g}"
    return f"about {result.particles:.0f} particles; {here}; {best}"
