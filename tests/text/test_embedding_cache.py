"""Embeddings on disk: each text of a model is embedded once, and what is read back has the same bits."""

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.text import embedding_cache
from calibrant.text.embedding_cache import CachedEmbedder


class Counted:
    """Embeds a text as its length, and counts what it is asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked.append(list(texts))
        return torch.tensor([[len(text), 0.1 * len(text)] for text in texts], dtype=torch.float32).reshape(-1, 2)


def test_each_text_is_embedded_once_in_all_runs(tmp_path):
    first = Counted()
    cached = CachedEmbedder("counted", lambda: first, tmp_path / "e.sqlite")
    vectors = cached(["bb", "a", "bb"])
    assert torch.equal(vectors, first(["bb", "a", "bb"]))
    assert first.asked[0] == ["a", "bb"]
    second = Counted()
    again = CachedEmbedder("counted", lambda: second, tmp_path / "e.sqlite")
    assert torch.equal(again(["ccc", "a", "bb"])[1:], vectors[[1, 0]])
    assert second.asked == [["ccc"]]
    assert again([]).shape == (0, 2)


def test_models_do_not_share_texts(tmp_path, monkeypatch):
    one, other = Counted(), Counted()
    CachedEmbedder("counted", lambda: one, tmp_path / "e.sqlite")(["a"])
    monkeypatch.setattr(embedding_cache, "_weights", lambda name: "other weights")
    CachedEmbedder("counted", lambda: other, tmp_path / "e.sqlite")(["a"])
    assert one.asked == other.asked == [["a"]]


def test_more_texts_than_a_query_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_cache, "ASKED", 3)
    texts = ["x" * i for i in range(10)]
    cached = CachedEmbedder("counted", Counted, tmp_path / "e.sqlite")
    cached(texts[::2])
    assert cached(texts)[:, 0].tolist() == list(range(10))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "e.sqlite").write_text("no database, but a text that is long enough to be looked at" * 20)
    with pytest.raises(CalibrantError, match=r"e\.sqlite' is no embedding cache"):
        CachedEmbedder("counted", Counted, tmp_path / "e.sqlite")


def test_no_model_is_loaded_for_texts_that_are_kept(tmp_path):
    first = CachedEmbedder("counted", Counted, tmp_path / "e.sqlite")
    vectors = first(["a", "bb"])
    loaded = []
    again = CachedEmbedder("counted", lambda: loaded.append(Counted()) or loaded[-1], tmp_path / "e.sqlite")
    assert torch.equal(again(["bb", "a"]), vectors[[1, 0]])
    assert not loaded
    again(["bb", "new", "newer"])
    again(["newest"])
    assert [one.asked for one in loaded] == [[["new", "newer"], ["newest"]]]
