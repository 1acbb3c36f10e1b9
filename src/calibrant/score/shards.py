"""The output of scoring, shard by shard: files, and a manifest that says which are complete.

A shard is written completely before the manifest names it, so that a process that is killed and started again continues
after the last one. The folder of a single output file is hidden beside it until that file is complete.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from calibrant.errors import CalibrantError
from calibrant.files import JsonObject, write_with
from calibrant.score.methods import States

MANIFEST = "manifest.json"
TEMPORARY = ("partitions", "embeddings.sqlite", "embeddings.sqlite-wal", "embeddings.sqlite-shm")
SINGLE = (".parquet", ".jsonl")  # endings of one file in place of a folder
FILES = ("part-*.parquet", "part-*.jsonl", "state-*.safetensors")


class Shards:
    """The shards in a folder; `identity` says what is scored, and how."""

    def __init__(self, out: Path, identity: JsonObject):
        self.out = out
        self.single = out.suffix in SINGLE
        self.suffix = out.suffix if self.single else ".parquet"
        self.folder = out.with_name(f".{out.name}.parts") if self.single else out
        self.manifest: JsonObject = {**identity, "partitioned": False, "complete": False, "shards": []}

    def open(self) -> None:
        """Reads the manifest of an interrupted run, if there is one; CalibrantError if it is that of another."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if not path.exists():
            if any(not file.name.startswith(".") for file in self.folder.iterdir()):
                raise CalibrantError(f"'{self.folder}' is not empty and holds no scores; give another --out")
            return
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            other = [name for name in ("settings", "sources") if known[name] != self.manifest[name]]
            self.manifest = {**self.manifest, **{name: known[name] for name in ("partitioned", "complete", "shards")}}
        except (ValueError, KeyError, TypeError):
            raise CalibrantError(f"'{path}' is damaged; delete the folder, or give another --out") from None
        if other:
            raise CalibrantError(
                f"'{self.folder}' holds scores of other {' and '.join(other)}; delete it, or give another --out"
            )

    @property
    def done(self) -> list[JsonObject]:
        """The entries of the shards that are complete, in order."""
        entries: list[JsonObject] = self.manifest["shards"]
        return entries

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"part-{number:05d}{self.suffix}"

    def states(self) -> States:
        """The memories of methods after the last shard."""
        path = self._state(len(self.done) - 1)
        states: dict[str, dict[str, Any]] = {}
        for name, tensor in (load_file(path) if path.exists() else {}).items():
            method, _, entry = name.rpartition("/")
            states.setdefault(method, {})[entry] = tensor
        return dict(states)

    def add(self, rows: int, summary: Mapping[str, Any], states: States) -> None:
        """Adds the next shard, whose file is written."""
        number = len(self.done)
        tensors = {f"{name}/{entry}": x.contiguous() for name, state in states.items() for entry, x in state.items()}
        if tensors:
            write_with(self._state(number), lambda file: save_file(tensors, file))
        self.done.append({"file": self.path(number).name, "rows": rows, "summary": dict(summary)})
        self.write()
        self._state(number - 1).unlink(missing_ok=True)

    def restart(self) -> None:
        """Removes all shards: the rollouts are partitioned first."""
        self._remove(FILES)
        self.manifest |= {"partitioned": True, "shards": []}
        self.write()

    def finish(self) -> None:
        """Marks the output as complete, or makes the single file; removes what was needed on the way."""
        if self.single:
            write_with(self.out, self._join)
            shutil.rmtree(self.folder)
            return
        self.manifest["complete"] = True
        self.write()
        self._remove((*TEMPORARY, "state-*.safetensors"))

    def abandon(self) -> None:
        """Removes what is left of a run of which no shard is complete, or holds a reward."""
        if not any(entry["summary"]["scorable"] for entry in self.done):
            self._remove((*FILES, *TEMPORARY, MANIFEST))
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def write(self) -> None:
        """Writes the manifest."""
        write_with(self.folder / MANIFEST, lambda file: file.write_text(json.dumps(self.manifest), encoding="utf-8"))

    def _state(self, number: int) -> Path:
        return self.folder / f"state-{number:05d}.safetensors"

    def _remove(self, patterns: tuple[str, ...]) -> None:
        for path in (path for pattern in patterns for path in self.folder.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _join(self, path: Path) -> None:
        """Writes all shards into one file, one after the other."""
        files = [self.folder / entry["file"] for entry in self.done]
        if self.suffix == ".jsonl":
            with open(path, "wb") as target:
                for file in files:
                    with open(file, "rb") as shard:
                        shutil.copyfileobj(shard, target)
            return
        schema = _common([pq.read_schema(file) for file in files])
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for file in files:
                writer.write_table(_in_schema(pq.read_table(file), schema))


def _common(schemas: list[pa.Schema]) -> pa.Schema:
    """The columns of all, as text where their types differ."""
    kinds: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        same = kinds.setdefault(field.name, field.type) == field.type
        kinds[field.name] = field.type if same else pa.string()
    return pa.schema(kinds.items())


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    nulls = {field.name: pa.nulls(len(table), field.type) for field in schema}
    columns = {name: table[name].cast(schema.field(name).type) for name in table.column_names}
    return pa.table({**nulls, **columns}, schema=schema)
