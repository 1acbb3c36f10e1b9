"""Image models of four families, each also with PEFT: prompts with pictures train, as groups and as text."""

import pytest
from datasets import Dataset
from image_models import FAMILIES, image_model
from peft import LoraConfig
from PIL import Image
from test_trainer import arguments, losses, same_bits, some_slow, train
from trl import GRPOConfig, GRPOTrainer

from calibrant.rollouts import read_rollouts
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer


def pictures():
    """Two questions, each with a picture of its own in a column."""
    colours = {f"Which colour {i}?": Image.new("RGB", (28, 28), colour) for i, colour in enumerate(["red", "blue"])}
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": text}], "image": picture} for text, picture in colours.items()]
    )


def among_the_parts(batch):
    """The same, with the picture among the parts of the prompt: another object for each rollout."""
    texts = [prompt[0]["content"] for prompt in batch["prompt"]]
    parts = [
        [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        for picture, text in zip(batch["image"], texts, strict=True)
    ]
    return {"prompt": [[{"role": "user", "content": content}] for content in parts]}


def letters(completions, **_):
    return [len(c[0]["content"]) % 5 / 5 for c in completions]


def run(folder, family, policy, data, peft=False, kind=CalibratedGRPOTrainer, config=CalibratedGRPOConfig, **options):
    model, processor = image_model(family, policy)
    adapter = LoraConfig(target_modules=["q_proj", "v_proj"], r=2) if peft else None
    changes = dict(beta=0.0, max_steps=2, shuffle_dataset=False, num_generations=4, learning_rate=0.1)
    args = arguments(folder, config, **changes, **options)
    return train(model, data, args, letters, kind=kind, processing_class=processor, peft_config=adapter)


@pytest.mark.parametrize(
    ("family", "peft"), some_slow([*((f, False) for f in FAMILIES), *((f, True) for f in FAMILIES)], often=5)
)
def test_prompts_with_pictures_train_as_in_trl(policy, tmp_path, family, peft):
    data = pictures()
    theirs = run(tmp_path / "a", family, policy, data, peft, GRPOTrainer, GRPOConfig)
    ours = run(tmp_path / "b", family, policy, data, peft, method="grpo")
    assert losses(ours) == losses(theirs) and any(losses(ours))
    assert same_bits(ours, theirs)
    rows = read_rollouts(tmp_path / "b" / "_rollouts" / "step-000001.parquet")
    expected = [f"user: <image>Which colour {i}?" for i in range(2)]
    assert rows.prompt.tolist() == [text for text in expected for _ in range(4)]
    assert rows.groupby("prompt_id").size().tolist() == [4, 4]


@pytest.mark.parametrize("family", some_slow(FAMILIES[::-1], often=1))
def test_pictures_among_the_parts_of_a_prompt(policy, tmp_path, family):
    options = dict(method="seed_grpo", reward_range=[0.0, 1.0])
    run(tmp_path, family, policy, pictures().with_transform(among_the_parts), **options)
    rows = read_rollouts(tmp_path / "_rollouts" / "step-000001.parquet")
    assert set(rows.prompt) == {f"user: <image>Which colour {i}?" for i in range(2)}
    assert rows.groupby("prompt_id").size().tolist() == [4, 4]
    assert rows.logprob.lt(0).all()
