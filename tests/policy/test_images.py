"""Nothing is shared where a model gets more than token ids: completions are those of `generate`, of an image."""

import pytest
import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from calibrant.policy.prefill import shared_prefill
from calibrant.policy.verify import record_of

IMAGE, START = 60, 61
TEXT = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=512, pad_token_id=0, eos_token_id=1, bos_token_id=2,
)  # fmt: skip
CLIP = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=4)
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def qwen(config, kind, vision):
    special = dict(image_token_id=IMAGE, vision_start_token_id=START, vision_end_token_id=62, video_token_id=63)
    text = TEXT | {"rope_parameters": ROPE}
    return kind(config(text_config=text, vision_config=vision, **special)), 4, {
        "pixel_values": torch.randn(4 * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 4),
        "mm_token_type_ids": None,
    }  # fmt: skip


def qwen2():
    vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=4, mlp_ratio=2, patch_size=4, spatial_merge_size=2)
    return qwen(Qwen2VLConfig, Qwen2VLForConditionalGeneration, vision)


def qwen2_5():
    vision = dict(depth=2, hidden_size=32, out_hidden_size=32, intermediate_size=48, num_heads=4, patch_size=4)
    vision |= dict(spatial_merge_size=2, window_size=16, fullatt_block_indexes=[1])
    return qwen(Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, vision)


def gemma3():
    config = Gemma3Config(
        text_config=TEXT | dict(sliding_window=8), vision_config=CLIP | dict(image_size=16), mm_tokens_per_image=4,
        image_token_index=IMAGE, image_token_id=IMAGE,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config), 4, {
        "pixel_values": torch.randn(4, 3, 16, 16), "token_type_ids": None,
    }  # fmt: skip


def llava():
    config = LlavaNextConfig(
        text_config=TEXT | dict(model_type="llama"), image_token_index=IMAGE, image_token_id=IMAGE,
        vision_config=CLIP | dict(model_type="clip_vision_model", image_size=16, projection_dim=32),
        image_grid_pinpoints=[[16, 16]], vision_feature_select_strategy="default",
    )  # fmt: skip
    pixels = torch.randn(4, 2, 3, 16, 16)
    return LlavaNextForConditionalGeneration(config), None, {
        "pixel_values": pixels, "image_sizes": torch.tensor([[16, 16]] * 4),
    }  # fmt: skip


def inputs(model, count, extra):
    """Four rows with the same ids and two different images."""
    ids = torch.tensor([[5, START, *[IMAGE] * count, 62, 7, 8]]).repeat(4, 1)
    tensors = {name: x for name, x in extra.items() if x is not None}
    tensors |= {name: (ids == IMAGE).long() for name, x in extra.items() if x is None}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tensors}


def answers(model, given):
    torch.manual_seed(3)
    return model.generate(**given, do_sample=True, max_new_tokens=6, pad_token_id=0)


@pytest.mark.parametrize("build", [gemma3, qwen2, qwen2_5, llava])
def test_completions_of_images_are_those_of_generate(build):
    torch.manual_seed(0)
    model, count, extra = build()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) / 5)  # some projections of images begin at 0
    given = inputs(model.eval(), 36 if count is None else count, extra)
    plain = answers(model, given)
    with shared_prefill(model, states=True) as decoded:
        assert torch.equal(answers(model, given), plain)
    assert decoded.ids is None and not record_of(model).verified and not record_of(model).failed
    blind = dict(given, pixel_values=torch.zeros_like(given["pixel_values"]))
    assert not torch.equal(answers(model, blind), plain)  # the image matters


@pytest.mark.parametrize("build", [gemma3, llava])
def test_text_alone_is_shared_or_falls_back(build):
    torch.manual_seed(0)
    model, _, _ = build()
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]).repeat(3, 1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    plain = answers(model.eval(), given)
    with shared_prefill(model):
        assert torch.equal(answers(model, given), plain)
