"""TRL's own script, and scripts of the kinds of its examples, with TRL's trainer and with ours in its place."""

import importlib.util
import inspect
import json
from importlib.metadata import version
from itertools import count

import pytest
import torch
from datasets import Dataset
from packaging.version import Version
from safetensors.torch import load_file
from test_trainer import arguments, same_bits, train, vowels
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.scripts import grpo

from calibrant.demo import policy_path
from calibrant.rollouts import read_rollouts
from calibrant.trl import CalibratedGRPOConfig, CalibratedGRPOTrainer

TRAINER = (
    "from trl import GRPOTrainer, get_dataset,",
    "from calibrant.trl import CalibratedGRPOTrainer as GRPOTrainer; from trl import get_dataset,",
)
CONFIG = (
    "from trl import DatasetMixtureConfig, GRPOConfig,",
    "from calibrant.trl import CalibratedGRPOConfig as GRPOConfig; from trl import DatasetMixtureConfig,",
)
REWARD = "def letters(completions, **_):\n    return [len(set(turns[0]['content'])) / 26 for turns in completions]\n"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a data set as a hub repository holds it, a model with a chat template, and a reward function."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "data").mkdir()
    for split, size in (("train", 8), ("test", 4)):
        asked = [{"role": "user", "content": f"The capital of France is Paris. What is {size} plus 1?"}]
        rows = [{"prompt": asked, "solution": f"$\\boxed{{{i}}}$"} for i in range(size)]
        (folder / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(policy_path())
    tokenizer.chat_template = "{% for turn in messages %}{{ turn['content'] }}\n{% endfor %}"
    for part in (tokenizer, AutoModelForCausalLM.from_pretrained(policy_path())):
        part.save_pretrained(folder / "model")
    (folder / "mine.py").write_text(REWARD)
    return folder


def run(given, out, changed, *more):
    """Runs TRL's `scripts/grpo.py` with lines changed; the parameters that it saves."""
    source = inspect.getsource(grpo)
    for old, new in changed:
        assert source.count(old) == 1
        source = source.replace(old, new)
    path = given / f"script_{out.name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    options = dict(
        model_name_or_path=given / "model", dataset_name=given / "data", output_dir=out, max_steps=3, seed=3,
        per_device_train_batch_size=4, num_generations=4, max_completion_length=8, learning_rate=1e-3, beta=0.01,
        report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, eval_strategy="steps", eval_steps=3,
        per_device_eval_batch_size=4, logging_steps=1,
    )  # fmt: skip
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    rewards = ["--reward_funcs", "accuracy_reward", "think_format_reward", "mine.letters"]
    script.main(*script.make_parser().parse_args_and_config([*flags, *rewards, *more], fail_with_unknown_args=False))
    return load_file(next(out.glob("*.safetensors")))


def test_grpo_script(given, tmp_path, monkeypatch):
    monkeypatch.chdir(given)
    theirs = run(given, tmp_path / "theirs", [])
    same = run(given, tmp_path / "same", [TRAINER, CONFIG], "--method", "grpo", "--share_prefix", "False")
    one_line = run(given, tmp_path / "one_line", [TRAINER])
    assert all(torch.equal(same[name], value) for name, value in theirs.items())
    assert any(not torch.equal(one_line[name], value) for name, value in theirs.items())
    rows = read_rollouts(tmp_path / "one_line" / "_rollouts" / "step-000001.parquet")
    assert len(rows) == 4
    assert "barycentric_transport" in rows


PAGES = {
    "page_size": 16,
    "num_blocks": 32,
    "max_batch_tokens": 64,
    "use_cuda_graph": False,
    "use_async_batching": False,
}


@pytest.mark.skipif(Version(version("transformers")) < Version("5.23"), reason="its options have other names before")
def test_continuous_batching(policy, questions, tmp_path):
    """`generate_batch` samples: nothing to share while sampling, prompts are shared in the passes that follow."""
    common = dict(
        max_steps=1, per_device_train_batch_size=4, max_completion_length=4,
        use_transformers_continuous_batching=True, transformers_continuous_batching_config=PAGES,
    )  # fmt: skip
    theirs = train(policy, questions, arguments(tmp_path / "a", GRPOConfig, **common), vowels, kind=GRPOTrainer)
    same = train(policy, questions, arguments(tmp_path / "b", method="grpo", share_prefix=False, **common), vowels)
    shared = train(policy, questions, arguments(tmp_path / "c", method="grpo", **common), vowels)
    assert same_bits(same, theirs)
    for name in ("loss", "reward", "completions/mean_length"):
        assert shared.state.log_history[0][name] == pytest.approx(theirs.state.log_history[0][name], abs=1e-5)


class Board:
    """An environment that shows another number at each reset."""

    numbers = count()

    def reset(self, **_):
        self.number = next(self.numbers)
        return f" The board shows {self.number}."

    def guess(self, number: int) -> str:
        """Guesses the number.

        Args:
            number: The guess.
        """
        return "right" if number == self.number else "wrong"

    def get_reward(self):
        return float(self.number % 3)


def test_environment_factory(talking, tmp_path):
    asked = Dataset.from_list([{"prompt": [{"role": "user", "content": f"Question {i}."}]} for i in range(4)])
    common = dict(max_steps=1, max_completion_length=8, beta=0.0)
    trained = []
    for name, more in (("a", {}), ("b", {"method": "grpo", "share_prefix": False}), ("c", {"method": "rd_only"})):
        torch.manual_seed(0)  # rows of new tokens are random
        model, tokenizer = talking()
        Board.numbers = count()
        kinds = {"kind": CalibratedGRPOTrainer} if more else {"kind": GRPOTrainer}
        args = arguments(tmp_path / name, CalibratedGRPOConfig if more else GRPOConfig, **common, **more)
        trained.append(train(model, asked, args, None, processing_class=tokenizer, environment_factory=Board, **kinds))
    theirs, same, ours = trained
    assert same_bits(same, theirs)
    assert not same_bits(ours, theirs)
    assert ours.state.log_history[0]["group/reward_dispersion/mean"] > 0
