"""Embeddings on disk: each distinct text of a model is embedded once, in this run or an earlier one."""

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.files import sha256
from calibrant.text.embed import packaged

Embed = Callable[[Sequence[str]], Tensor]

ASKED = 500  # texts per query
TABLE = "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"


class CachedEmbedder:
    """An `Embedder` with an SQLite file of float32 vectors, keyed by the SHA-256 of model and text.

    `load` gives the embedder of the model `name`, and is called when a text is new. The texts of a call that the file
    lacks are embedded together, and written in one transaction, so that a process that is killed and started again
    computes the same bits. A model is known by its name, and by the checksum of its weights where it is a folder.
    """

    def __init__(self, name: str, load: Callable[[], Embed], path: str | Path):
        self.load, self.path = load, Path(path)
        self.prefix = f"{name} {_weights(name)} ".encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.file = sqlite3.connect(self.path, timeout=600)
            self.file.execute("PRAGMA journal_mode=WAL")
            self.file.execute(TABLE)
            self.file.commit()
        except sqlite3.Error as error:
            raise CalibrantError(f"'{path}' is no embedding cache ({error}); give a new file") from None

    @cached_property
    def embedder(self) -> Embed:
        """The embedder, loaded."""
        return self.load()

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised embeddings `[B, D]` of B texts, float32 on the CPU."""
        distinct = sorted(set(texts))
        keys = {text: hashlib.sha256(self.prefix + text.encode("utf-8", "replace")).digest() for text in distinct}
        vectors = self._stored(list(keys.values()))
        missing = [text for text in distinct if keys[text] not in vectors]
        if missing:
            embedded = self.embedder(missing).numpy()
            rows = [(keys[text], vector.tobytes()) for text, vector in zip(missing, embedded, strict=True)]
            with self.file:
                self.file.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?)", rows)
            vectors |= dict(rows)
        if not distinct:
            return self.embedder([])
        number = {text: i for i, text in enumerate(distinct)}
        matrix = np.frombuffer(b"".join(vectors[key] for key in keys.values()), dtype=np.float32)
        return torch.from_numpy(matrix.reshape(len(distinct), -1)[[number[text] for text in texts]])

    def _stored(self, keys: list[bytes]) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for i in range(0, len(keys), ASKED):
            part = keys[i : i + ASKED]
            marks = ",".join("?" * len(part))
            found |= dict(self.file.execute(f"SELECT key, vector FROM embeddings WHERE key IN ({marks})", part))
        return found


def _weights(model: str) -> str:
    """The checksums of the weights in the folder of a model; empty for a name of the hub."""
    folder = Path(packaged(model))
    return " ".join(sha256(file) for file in sorted(folder.rglob("*.safetensors"))) if folder.is_dir() else ""
