"""`calibrant compare --dry-run`: an estimate of time, from the runs that are there or from the model."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import mean, median

from calibrant.compare.command import Comparison, side_by_side
from calibrant.compare.evaluations import seconds_of
from calibrant.compare.plan import Planned
from calibrant.errors import CalibrantError
from calibrant.files import read_json_lines
from calibrant.train.estimate import duration, run_seconds
from calibrant.train.prepare import prepare


def estimate(compared: Comparison, planned: list[Planned]) -> Iterator[str]:
    """Lines: seconds per step and evaluation, where they are from, and the time of what is to do."""
    left = [one for one in planned if not one.complete]
    if not left:
        yield "nothing is to be done"
        return
    steps = _seconds_per_step(planned)
    evaluations = [x for one in planned for x in _evaluation_seconds(compared, one) if x is not None]
    source = "as measured in the runs that are there"
    if not steps or not evaluations:
        try:
            step, evaluation = _from_model(left)
        except CalibrantError as error:
            yield f"no estimate of time: {error}"
            return
        steps, evaluations = steps or {"": step}, evaluations or [evaluation]
        source = "from a few tokens and one pass of the model where no run is there; rewards and signals not counted"
    typical = mean(steps.values())
    training = sum(
        (one.training.steps - one.done) * steps.get(one.cell.name, typical) for one in left if not one.trained
    )
    evaluating = sum(len(one.evaluations) for one in left) * mean(evaluations)
    jobs = min(side_by_side(compared), len(left))
    yield f"a step: about {duration(typical)}; an evaluation: about {duration(mean(evaluations))}; {source}"
    yield f"time: about {duration((training + evaluating) / jobs)} with {jobs} side by side, beside starts of processes"


def _seconds_per_step(planned: list[Planned]) -> dict[str, float]:
    """Cell -> median seconds of its finished steps."""
    seconds: dict[str, list[float]] = {}
    for one in planned:
        rows = read_json_lines(one.run.metrics) if one.run else ()
        seconds.setdefault(one.cell.name, []).extend(row["seconds"] for row in rows if "seconds" in row)
    return {cell: median(values) for cell, values in seconds.items() if values}


def _evaluation_seconds(compared: Comparison, one: Planned) -> Iterator[float | None]:
    for target in compared.targets:
        if one.run:
            yield seconds_of(compared.folder.evaluation(target.name, one.cell.name, one.training.seed))


def _from_model(left: list[Planned]) -> tuple[float, float]:
    """Seconds of a step and of an evaluation, from the model of the first run that is to do."""
    first = next((one for one in left if one.run), left[0])
    seconds = run_seconds(prepare(replace(first.training, evaluation=True)))
    return seconds.step, seconds.evaluation
