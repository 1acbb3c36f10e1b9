"""The steps of `calibrant score`: from settings to scored rollouts, unit by unit."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from calibrant.errors import CalibrantError, Stopped
from calibrant.files import JsonObject, locked, versions
from calibrant.ray_cluster import require_ray
from calibrant.rollouts.files import HINTS
from calibrant.rollouts.formats import Layout, layout_of, rollouts_of
from calibrant.rollouts.sources import RowSource, find_sources
from calibrant.rollouts.units import FILE, ROW, GroupsLieApart, check_prompts, in_order, partitioned
from calibrant.score.cluster import cluster
from calibrant.score.methods import States
from calibrant.score.pools import Result, processes
from calibrant.score.settings import ScoreSettings
from calibrant.score.shards import SINGLE, Shards
from calibrant.score.summary import Summary
from calibrant.score.units import PartlyScored, UnitScorer

WAITING = 2  # units per process or processor of a cluster that are read ahead
NOT_IDENTITY = ("out", "jobs", "ray", "embedding_cache")  # settings that change no number

Tell = Callable[[str], object]


class ScoredFile(NamedTuple):
    """The result of scoring."""

    summary: Summary
    methods: tuple[str, ...]  # those that were applied
    units: int


def check_options(settings: ScoreSettings) -> None:
    """Raises CalibrantError for options that contradict each other, before anything is read."""
    out = Path(settings.out or "")
    if out.is_dir() if out.suffix in SINGLE else out.is_file() or out.suffix in HINTS:
        raise CalibrantError(
            f"--out '{out}' is not the name of a rollout file; end it in .parquet or .jsonl, or give a folder"
        )
    if settings.ray and settings.jobs > 1:
        raise CalibrantError("a Ray cluster scores as many units at a time as it has processors; leave out --jobs")
    if settings.ray:
        require_ray()
    one = settings.mean_one or any(x is not None for x in (settings.alpha, settings.strength, settings.method_options))
    if settings.method is None and one:
        raise CalibrantError(
            "--alpha, --strength, --mean-one and --method-options belong to one method; name it with --method"
        )


def score_file(settings: ScoreSettings, tell: Tell = print) -> ScoredFile:
    """Applies one method, or every method whose inputs the rollouts have, and writes `settings.out`.

    `tell` is called with what the user should know. A run that was stopped is continued after its last shard.
    """
    check_options(settings)
    sources = find_sources(settings.file)
    with tempfile.TemporaryDirectory() as temporary:
        if settings.out is None:
            return _scored(settings, sources, None, Path(temporary), tell)
        shards = Shards(Path(settings.out), _identity(settings, sources))
        with locked(shards.folder):
            shards.open()
            try:
                result = _scored(settings, sources, shards, shards.folder, tell)
            except KeyboardInterrupt:
                done = len(shards.done)
                shards.abandon()
                raise Stopped(f"stopped after {done} shards; the same command, given again, continues") from None
            except BaseException:
                shards.abandon()
                raise
            if not shards.manifest["complete"]:
                shards.finish()
            return result


def _identity(settings: ScoreSettings, sources: list[RowSource]) -> JsonObject:
    files = [(source.name, source.path.stat() if source.path else None) for source in sources]
    return {
        "settings": {name: value for name, value in asdict(settings).items() if name not in NOT_IDENTITY},
        "sources": [[name, about.st_size, about.st_mtime_ns] if about else [name] for name, about in files],
        "versions": versions(),
    }


def _scored(
    settings: ScoreSettings, sources: list[RowSource], shards: Shards | None, folder: Path, tell: Tell
) -> ScoredFile:
    """Scores all units; where groups lie apart, once more after their rows were partitioned."""
    scorer = UnitScorer(settings, str(folder / "embeddings.sqlite"))
    if shards and shards.manifest["complete"]:
        tell(f"'{settings.out}' is complete; nothing is left to do")
        return _result(scorer, [Summary.read(entry["summary"]) for entry in shards.done])
    tell = cache(tell)  # once for each note, also where the sources are read twice

    def tables() -> Iterator[pa.Table]:
        return _tables(settings, sources, tell)

    if not (shards and shards.manifest["partitioned"]):
        try:
            return _result(scorer, _summaries(scorer, in_order(tables(), settings.shard_rows), sources, shards))
        except GroupsLieApart as apart:
            tell(f"the rollouts of prompt '{apart}' lie apart; all rows are sorted into partitions on the disk first")
            if shards:
                shards.restart()
    size = sum(source.size for source in sources)
    units = in_order(partitioned(tables, folder / "partitions", size), settings.shard_rows)
    return _result(scorer, _summaries(scorer, units, sources, shards))


def _result(scorer: UnitScorer, summaries: list[Summary]) -> ScoredFile:
    total = sum(summaries[1:], summaries[0])
    applied = tuple(name for name in scorer.methods if name in total.weights)
    if not total.scorable:
        raise CalibrantError(f"'{scorer.settings.file}' has no finite value in reward or correct; fill one of them in")
    if scorer.settings.method and total.refused:
        raise CalibrantError(total.refused[scorer.settings.method])
    return ScoredFile(total, applied, len(summaries))


def _tables(settings: ScoreSettings, sources: list[RowSource], tell: Tell) -> Iterator[pa.Table]:
    """The rollouts of all sources, with the numbers of source and row."""
    empty = True
    for number, source in enumerate(sources):
        layout: Layout | None = None
        for block in source.blocks():
            if layout is None and block.size:
                layout = layout_of(block, source.origin, settings.format, settings.columns or {}, settings.filter)
                for note in layout.notes:
                    tell(note)
            if layout is None:
                continue
            table = rollouts_of(block, layout, source.origin)
            if len(table):
                empty = False
                rows = pa.array(range(block.first, block.first + len(table)), pa.int64())
                file = pa.array([number] * len(table), pa.int32())
                yield table.append_column(FILE, file).append_column(ROW, rows)
    if empty:
        filtered = f" with the filter '{settings.filter}'" if settings.filter else ""
        raise CalibrantError(f"'{settings.file}' holds no rollouts{filtered}; give a file with one row per rollout")


def _summaries(
    scorer: UnitScorer, units: Iterator[pa.Table], sources: list[RowSource], shards: Shards | None
) -> list[Summary]:
    """The summary of each unit; units whose shards are complete are not scored again."""
    done = [Summary.read(entry["summary"]) for entry in shards.done] if shards else []
    states = shards.states() if shards else {}
    origins = [source.origin for source in sources]
    for _ in islice(units, len(done)):
        pass

    def checked() -> Iterator[pa.Table]:
        for unit in units:
            check_prompts(unit, origins)
            yield scorer.judged(unit)

    def add(rows: int, summary: Summary, states: States) -> None:
        if scorer.settings.method and summary.refused:
            raise CalibrantError(summary.refused[scorer.settings.method])
        done.append(summary)
        if shards:
            shards.add(rows, asdict(summary), states)

    path = (lambda number: shards.path(number)) if shards else (lambda _: None)
    first = len(done)
    alone = scorer.settings.jobs == 1 and not scorer.settings.ray
    (_alone if alone else _in_pool)(scorer, checked(), states, path, first, add)
    return done


PathOf = Callable[[int], Path | None]
Add = Callable[[int, Summary, States], None]


def _alone(scorer: UnitScorer, units: Iterator[pa.Table], states: States, path: PathOf, first: int, add: Add) -> None:
    for number, unit in enumerate(units, first):
        groups = scorer.groups(unit)
        part = scorer.apply(groups, list(scorer.methods), states)
        add(len(unit), scorer.finish(unit, groups, [part], path(number)), states)


def _in_pool(scorer: UnitScorer, units: Iterator[pa.Table], states: States, path: PathOf, first: int, add: Add) -> None:
    """Methods that need an order or a model are applied here, the others in a pool; shards are added in order."""
    ordered = sorted(scorer.ordered)
    waiting: deque[tuple[Result, int, States]] = deque()

    def collect() -> None:
        result, rows, after = waiting.popleft()
        add(rows, Summary.read(result()), after)

    address = scorer.settings.ray
    with cluster(address, scorer) if address else processes(scorer.settings) as pool:
        for number, unit in enumerate(units, first):
            part = scorer.apply(scorer.groups(unit), ordered, states) if ordered else PartlyScored({}, {})
            waiting.append((pool.submit(unit, part, path(number)), len(unit), dict(states)))
            if len(waiting) >= WAITING * pool.size:
                collect()
        while waiting:
            collect()
