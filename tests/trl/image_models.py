"""Image models of four families as tiny random configurations, with their processors over the embedded tokenizer."""

from typing import Any

import torch
import transformers as tf
from transformers import AutoTokenizer, ProcessorMixin

TEMPLATE = (
    "{%- for m in messages -%}{%- if m['content'] is string -%}{{ m['content'] }}{%- else -%}"
    "{%- for p in m['content'] -%}{{ p['text'] if p['type'] == 'text' else PICTURE }}{%- endfor -%}"
    "{%- endif -%}{%- endfor -%}"
)
TEXT = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=4096, tie_word_embeddings=False,
)  # fmt: skip
VISION = dict(
    hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=14, image_size=28
)
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "gemma3", "llava_next")


def image_model(family: str, policy: str) -> tuple[Any, Any]:
    """A random model with two text layers, and its processor."""
    torch.manual_seed(0)
    model, processor = globals()[f"_{family}"](policy)
    return model.float(), processor


def _tokenizer(policy: str, picture: str, **special: str) -> Any:
    found = AutoTokenizer.from_pretrained(policy, padding_side="left", model_max_length=4096)
    found.add_special_tokens({"additional_special_tokens": list(special.values())})
    for name, token in special.items():
        setattr(found, name, token)
        setattr(found, f"{name}_id", found.convert_tokens_to_ids(token))
    found.chat_template = TEMPLATE.replace("PICTURE", repr(picture))
    return found


def _ids(tokenizer: Any) -> dict[str, Any]:
    return dict(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)


class Pictures(ProcessorMixin):
    """A processor of pictures alone: that of videos needs torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)


def _qwen(policy: str, kind: str, vision: dict[str, Any], model: Any) -> tuple[Any, Any]:
    tokens = dict(image_token="<|image_pad|>", video_token="<|video_pad|>")
    ends = dict(vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>")
    tokenizer = _tokenizer(policy, "<|vision_start|><|image_pad|><|vision_end|>", **tokens, **ends)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = getattr(tf, f"{kind}Config")(
        text_config=TEXT | _ids(tokenizer) | {"rope_parameters": rope}, vision_config=vision,
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in (tokens | ends).items()},
    )  # fmt: skip
    images = tf.Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})
    processor = type(f"{kind}Processor", (Pictures, getattr(tf, f"{kind}Processor")), {})
    return model(config), processor(images, tokenizer, None, tokenizer.chat_template)


def _qwen2_vl(policy: str) -> tuple[Any, Any]:
    vision = dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=1, patch_size=14)
    return _qwen(policy, "Qwen2VL", vision, tf.Qwen2VLForConditionalGeneration)


def _qwen2_5_vl(policy: str) -> tuple[Any, Any]:
    vision = dict(
        depth=1, hidden_size=32, out_hidden_size=32, intermediate_size=32, num_heads=2, fullatt_block_indexes=[0]
    )
    return _qwen(policy, "Qwen2_5_VL", vision, tf.Qwen2_5_VLForConditionalGeneration)


def _gemma3(policy: str) -> tuple[Any, Any]:
    tokens = dict(boi_token="<start_of_image>", image_token="<image_soft_token>", eoi_token="<end_of_image>")
    tokenizer = _tokenizer(policy, "<start_of_image>", **tokens)
    names = dict(boi_token="boi_token_index", image_token="image_token_index", eoi_token="eoi_token_index")
    config = tf.Gemma3Config(
        text_config=TEXT | _ids(tokenizer) | {"head_dim": 16}, vision_config=VISION, mm_tokens_per_image=4,
        **{names[name]: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )  # fmt: skip
    images = tf.Gemma3ImageProcessorPil(size={"height": 28, "width": 28})
    processor = tf.Gemma3Processor(images, tokenizer, tokenizer.chat_template, image_seq_length=4)
    return tf.Gemma3ForConditionalGeneration(config), processor


def _llava_next(policy: str) -> tuple[Any, Any]:
    tokenizer = _tokenizer(policy, "<image>", image_token="<image>")
    config = tf.LlavaNextConfig(
        text_config=tf.LlamaConfig(**TEXT, **_ids(tokenizer)), vision_config=tf.CLIPVisionConfig(**VISION),
        image_grid_pinpoints=[[28, 56], [56, 28]], image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    size = {"height": 28, "width": 28}
    images = tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size=size, image_grid_pinpoints=[[28, 56], [56, 28]]
    )
    processor = tf.LlavaNextProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template, num_additional_image_tokens=1,
    )  # fmt: skip
    return tf.LlavaNextForConditionalGeneration(config), processor
