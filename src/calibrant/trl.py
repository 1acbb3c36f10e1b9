"""GRPO of TRL with calibrated updates: the one module that imports trl.

Only methods are overridden, none is copied. Rewards are scored where TRL gathers them, whole groups at a time, and
the weights multiply the advantages that TRL computed. Weights act on the policy term alone: with `beta > 0` a group
of weight 0 still has its KL gradient.
"""

import warnings
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from calibrant.errors import CalibrantError
from calibrant.groups import assert_integrity, has_spread
from calibrant.methods import METHODS, Method, resolve
from calibrant.rewarding import checked
from calibrant.rollouts import write_rollouts
from calibrant.scoring import Scorer, needs_embeddings, options_of, rollout_rows, summary
from calibrant.text import MINILM
from calibrant.text.embed import Embedder


@dataclass
class CalibratedGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig` plus the method and what it reads.

    TRL's fields keep TRL's defaults; the paper's settings (GCPO, appendix E.3) are `num_generations=16`,
    `temperature=0.9`, `learning_rate=5e-5`, `beta=0.002`, `max_steps=2000`.
    """

    method: str = field(
        default="gcpo_bot", metadata={"help": "Method: a name in calibrant.methods.METHODS or a dotted path."}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "Strength of the weights; None: the method's own default (GCPO: 0.6)."}
    )
    reward_range: list[float] = field(
        default_factory=lambda: [0.0, 2.0],
        metadata={"help": "Lowest and highest value of the task reward, as reward dispersion reads it (GCPO: 0, 2)."},
    )
    mean_one: bool = field(
        default=False,
        metadata={"help": "Divide the weights of a batch by their mean, so that they leave the learning rate alone."},
    )
    method_options: dict[str, Any] | None = field(
        default=None, metadata={"help": "Further hyper-parameters of the method, by name."}
    )
    meaning: str = field(
        default="answer",
        metadata={"help": "Text that is embedded and clustered: 'answer' (QA) or 'completion' (mathematics)."},
    )
    embedding_model: str = field(
        default=MINILM,
        metadata={"help": "Sentence-transformers model: a folder or a hub name (GCPO: all-MiniLM-L6-v2)."},
    )
    embedding_device: str | None = field(default=None, metadata={"help": "Device of the embedding model."})
    task_reward: str | None = field(
        default=None,
        metadata={"help": "Name of the reward function that signals read; None: the first. Never the shaped sum."},
    )
    rollouts_dir: str | None = field(
        default=None, metadata={"help": "Where rollouts go; None: OUTPUT_DIR/rollouts; an empty string: nowhere."}
    )


OWN_FIELDS = [f for f in fields(CalibratedGRPOConfig) if f.name not in {g.name for g in fields(GRPOConfig)}]


class CalibratedGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` whose updates are as strong as a method says.

    `A~_i = A_i * w_i`: `A_i` is TRL's advantage, to the bit; `w_i` comes from the method. A group without reward
    spread has advantage exactly 0, where TRL leaves a few 1e-3 of float residue. `method="grpo"` changes nothing:
    the same seed gives TRL's losses and parameters bit for bit, that residue included. A method that replaces the
    advantage (`Outcome.base` is not "standardised") is taken as it is.

    Args:
        model, reward_funcs, args, ...: as in `GRPOTrainer`; a plain `GRPOConfig` takes the defaults of
            `CalibratedGRPOConfig`.
        extract_answer: completion -> answer; strips white space when None.
        answer_key: answer -> string, equal for answers with one meaning; SQuAD normalisation when None.
        is_correct: (answer, references) -> bool for the rollout files, with the column `references` of the data.

    Raises:
        CalibrantError: an unknown method or hyper-parameter, an input that nothing supplies, an embedding model
            that cannot be loaded; while training, a reward function that fails or a group that is not one.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *positional: Any,
        extract_answer: Callable[[str], str] | None = None,
        answer_key: Callable[[str], str] | None = None,
        is_correct: Callable[[str, list[str]], bool] | None = None,
        **keywords: Any,
    ):
        args = args or CalibratedGRPOConfig("calibrated-grpo")
        _complete(args)
        self.method: Method = resolve(args.method)
        embed = Embedder(args.embedding_model, device=args.embedding_device) if needs_embeddings(self.method) else None
        self._scorer = Scorer(
            self.method,
            options_of(self.method, args),
            embed=embed,
            extract=extract_answer,
            key=answer_key,
            meaning=args.meaning,
        )
        self._is_correct = is_correct
        self._last_rollouts: tuple[int, int] = (-1, 0)
        self._warned_of_range = False
        super().__init__(model, _checked_all(reward_funcs), args, *positional, **keywords)
        self._task_reward = self._find_task_reward()

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> Tensor:
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._gathered = {
            "prompt": [as_text(p) for p in gather_object(prompts)],
            "completion": [as_text(c) for c in gather_object(completions)],
            "references": gather_object([row.get("references") for row in inputs]),
            "prompt_id": gather_object([row.get("prompt_id") for row in inputs]),
            "num_tokens": gather_object([len(ids) for ids in completion_ids_list]),
        }
        self._score(rewards_per_func)
        self._log_scores(len(prompts))
        return rewards_per_func

    def _score(self, rewards_per_func: Tensor) -> None:
        size = self.num_generations if self.model.training else self.num_generations_eval
        assert_integrity(self._gathered["prompt"], size)
        self._scored = self._scorer(self._gathered["completion"], rewards_per_func[:, self._task_reward].view(-1, size))
        total = (rewards_per_func * self.reward_weights.to(rewards_per_func.device)).nansum(dim=1)
        total[rewards_per_func.isnan().all(dim=1)] = torch.nan
        self._total_rewards = total.view(-1, size)

    def _log_scores(self, local: int) -> None:
        statistics = summary(self._scored, self.args.reward_range)
        for name, value in statistics.items():
            self._log_metric(name, value)
        start = self.accelerator.process_index * local
        self._log_completion_extra("weight", self._scored.outcome.weights.flatten()[start : start + local].tolist())
        self._warn_of_range(int(statistics["batch/reward_out_of_range"]))

    def _warn_of_range(self, outside: int) -> None:
        """Says once that rewards leave the range; `batch/reward_out_of_range` counts them at every step."""
        if outside and not self._warned_of_range and self.accelerator.is_main_process:
            self._warned_of_range = True
            low, high = self.args.reward_range
            warnings.warn(
                f"{outside} rewards of step {self.state.global_step + 1} lie outside the reward range [{low}, {high}]; "
                "reward dispersion is clipped there, so set reward_range to what the reward function can return "
                "(batch/reward_out_of_range counts them from here on)",
                stacklevel=2,
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        base = self.accelerator.gather(output["advantages"])
        advantages = base if self.method is METHODS["grpo"] else self._calibrated(base)
        start = self.accelerator.process_index * len(inputs)
        output["advantages"] = advantages[start : start + len(inputs)]
        self._rewrite_logged(advantages)
        if self.model.training and self.args.rollouts_dir != "":
            self._write_rollouts(output, base, advantages)
        return output

    def _calibrated(self, base: Tensor) -> Tensor:
        outcome = self._scored.outcome
        if outcome.base != "standardised":
            return outcome.advantages.flatten().to(base)
        weighted = base.view_as(outcome.weights) * outcome.weights.to(base)
        return torch.where(has_spread(self._total_rewards)[:, None], weighted, 0.0).flatten()

    def _rewrite_logged(self, advantages: Tensor) -> None:
        """Puts the advantages that are trained where the parent has logged the ones before."""
        logged = self._logs["advantages"]
        values = advantages.tolist()[-len(logged) :]
        for i, value in enumerate(values, start=len(logged) - len(values)):
            logged[i] = value

    def _write_rollouts(self, output: dict[str, Any], base: Tensor, advantages: Tensor) -> None:
        reference = self._reference_logprobs(output)
        if not self.accelerator.is_main_process:
            return
        step = self.state.global_step + 1
        part = self._last_rollouts[1] + 1 if self._last_rollouts[0] == step else 0
        self._last_rollouts = (step, part)
        folder = Path(self.args.rollouts_dir or Path(self.args.output_dir) / "rollouts")
        name = f"step-{step:06d}.parquet" if part == 0 else f"step-{step:06d}.{part}.parquet"
        columns = {
            **self._gathered,
            "advantage_base": base.tolist(),
            "advantage": advantages.tolist(),
            "ref_logprob": reference,
        }
        write_rollouts(folder / name, rollout_rows(self._scored, columns, step=step, is_correct=self._is_correct))

    def _reference_logprobs(self, output: dict[str, Any]) -> list[float | None]:
        logps = output.get("ref_per_token_logps")
        if logps is None:
            return [None] * len(self._gathered["prompt"])
        return self.accelerator.gather((logps * output["completion_mask"]).sum(dim=1)).tolist()

    def _find_task_reward(self) -> int:
        names: list[str] = self.reward_func_names
        wanted = self.args.task_reward
        if wanted is not None and wanted not in names:
            raise CalibrantError(
                f"no reward function is named '{wanted}'; task_reward takes one of: {', '.join(names)}"
            )
        return names.index(wanted) if wanted is not None else 0


def as_text(message: Any) -> str:
    """A prompt or completion as one string; a conversation as its contents, prompts with the roles."""
    if isinstance(message, str):
        return message
    if len(message) == 1 and message[0]["role"] == "assistant":
        return str(message[0].get("content") or "")
    return "\n".join(f"{turn['role']}: {turn.get('content') or ''}" for turn in message)


def _complete(args: GRPOConfig) -> None:
    for own in OWN_FIELDS:
        if not hasattr(args, own.name):
            setattr(args, own.name, own.default if own.default_factory is MISSING else own.default_factory())


def _checked_all(reward_funcs: Any) -> Any:
    if isinstance(reward_funcs, list):
        return [_checked_all(function) for function in reward_funcs]
    plain = callable(reward_funcs) and not isinstance(reward_funcs, (str, torch.nn.Module))
    return checked(reward_funcs) if plain else reward_funcs
