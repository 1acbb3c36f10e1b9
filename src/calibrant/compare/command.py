"""The steps of `calibrant compare`: from settings to finished runs, measurements and files."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calibrant.compare.cells import Cell, baseline_of, make_cells
from calibrant.compare.evaluations import Target, targets
from calibrant.compare.folder import Folder
from calibrant.compare.job import job_of
from calibrant.compare.measure import measure_cell, measure_target
from calibrant.compare.on_ray import work_on_ray
from calibrant.compare.plan import Planned, plan
from calibrant.compare.settings import CompareSettings
from calibrant.compare.work import work
from calibrant.demo import POLICIES
from calibrant.errors import CalibrantError
from calibrant.files import write_text
from calibrant.ray_cluster import require_ray
from calibrant.report import write_comparison
from calibrant.report.comparison_files import save_comparison
from calibrant.report.comparison_table import as_csv, as_latex, as_markdown, as_text
from calibrant.report.published import as_lines, gains_here, published
from calibrant.statistics.comparison import compare
from calibrant.statistics.comparison_table import ComparisonTable
from calibrant.statistics.measurements import Measurements
from calibrant.train.prepare import check, prepare

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """What is compared, checked."""

    settings: CompareSettings
    folder: Folder
    cells: list[Cell]
    baseline: str
    targets: list[Target]

    def plan(self) -> list[Planned]:
        """Everything that is read of it, with what is there already."""
        return plan(self.folder, self.cells, self.settings.seeds, self.targets)


def comparison(settings: CompareSettings, given: Mapping[str, object], path: Path | None) -> Comparison:
    """A comparison, by default in `runs/compare-TASK-MODEL`; `given` are the options of training for all cells."""
    if not settings.seeds or len(set(settings.seeds)) < len(settings.seeds):
        raise CalibrantError("--seeds names a seed twice, or none; give each once")
    if settings.ray is not None:
        require_ray()
    for name in settings.beside or ():
        published(name)  # raises for an unknown one
    cells = make_cells(settings, given)
    baseline = baseline_of(settings, cells)
    first = cells[0].training
    path = path or Path("runs") / f"compare-{first.task}-{Path(first.model).name}"
    if (path / "config.yaml").exists():
        raise CalibrantError(f"'{path}' holds a run or an analysis; give another --out")
    return Comparison(settings, Folder(path), cells, baseline, targets(settings, given, cells))


def finish(compared: Comparison, planned: list[Planned]) -> Measurements:
    """Does what is missing, and measures.

    Raises CalibrantError where a run that is not there cannot be started, before any is, or where all runs failed.
    """
    _check_startable(planned)
    jobs = [job_of(one, keep_checkpoints=compared.settings.keep_checkpoints) for one in planned if not one.complete]
    if compared.settings.ray is None:
        failed = work(jobs, compared.folder, side_by_side=side_by_side(compared), threads=compared.settings.threads)
    else:
        failed = work_on_ray(jobs, compared.folder, compared.settings)
    return measure(compared, planned, failed)


def measure_finished(compared: Comparison, planned: list[Planned]) -> Measurements:
    """What is measured so far; CalibrantError where no run is finished."""
    if not any(one.run and one.complete for one in planned):
        raise CalibrantError(f"no run in '{compared.folder.path}' is trained and evaluated yet; leave out --finished")
    return measure(compared, planned, {one.name: "not finished" for one in planned if not one.complete})


def side_by_side(compared: Comparison) -> int:
    """The number of runs side by side."""
    if compared.settings.jobs:
        return compared.settings.jobs
    small = all(cell.training.model in POLICIES for cell in compared.cells)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // compared.settings.threads) if small else 1


def _check_startable(planned: list[Planned]) -> None:
    """Checks the first run of each cell that has none; data are read once, as cells have them in common."""
    read = set[object]()
    cells = {one.cell.name: one.training for one in reversed(planned) if one.run and not one.run.config.exists()}
    for name, training in cells.items():
        data = (training.model, training.task, training.data, training.data_dir, training.selection)
        try:
            check(training) if data in read else prepare(training)
        except CalibrantError as error:
            raise CalibrantError(f"the cell '{name}' cannot be trained: {error}") from None
        read.add(data)


def measure(compared: Comparison, planned: list[Planned], failed: Mapping[str, str]) -> Measurements:
    """What the finished runs measured; `failed` are the reasons of the others."""
    finished: dict[str, list[int]] = {cell.name: [] for cell in compared.cells}
    reasons: dict[str, dict[int, str]] = {cell.name: {} for cell in compared.cells}
    for one in planned:
        if one.run and one.name in failed:
            reasons[one.cell.name][one.training.seed] = failed[one.name]
        elif one.run:
            finished[one.cell.name].append(one.training.seed)
    if not any(finished.values()):
        raise CalibrantError(f"every run failed, the last because: {[*failed.values()][-1]}")
    cells = [
        measure_cell(
            cell, {seed: compared.folder.run(cell.name, seed) for seed in finished[cell.name]}, reasons[cell.name]
        )
        for cell in compared.cells
    ]
    scores = [
        score
        for target in compared.targets
        for score in measure_target(target, compared.cells, finished, compared.folder)
    ]
    names = [name.replace("-", "_") for name in compared.settings.vary or {}]
    values = {name: tuple(dict.fromkeys(c.options[name] for c in cells if name in c.options)) for name in names}
    settings = compared.settings
    return Measurements(compared.baseline, settings.settings, settings.pair_seeds, values, tuple(cells), tuple(scores))


def finished_text(compared: Comparison, planned: list[Planned]) -> str:
    """The table of the runs that are finished, for a terminal."""
    return table_text(compared, compare(measure_finished(compared, planned)))


def table_text(compared: Comparison, table: ComparisonTable) -> str:
    """The table, and published ones below it, for a terminal."""
    beside = compared.settings.beside or ()
    blocks = ["\n".join(as_lines(published(name), gains_here(table))) + "\n" for name in beside]
    return "\n".join([as_text(table), *blocks])


def write(compared: Comparison, measurements: Measurements) -> tuple[str, list[Path]]:
    """Writes `comparison.json`, the table in four formats and the page; returns the table as text, and the paths."""
    table, out = compare(measurements), compared.folder.comparison
    text = table_text(compared, table)
    paths = [
        save_comparison(out, measurements, table, compared.settings.beside or ()),
        write_text(out.with_suffix(".txt"), text),
        write_text(out.with_suffix(".md"), as_markdown(table)),
        write_text(out.with_suffix(".tex"), as_latex(table)),
        write_text(out.with_suffix(".csv"), as_csv(table)),
        write_comparison(compared.folder.path),
    ]
    return text, paths
