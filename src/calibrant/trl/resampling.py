"""Further prompts in place of those whose rewards have no spread, as DAPO's dynamic sampling draws them.

A group without spread has advantages of 0 and teaches nothing under most methods. Such groups are replaced by groups of
other prompts, drawn and scored the same way, until all groups of the step have spread or the budget is used up.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from calibrant.errors import CalibrantError
from calibrant.groups import has_spread
from calibrant.trl.config import CalibratedGRPOConfig
from calibrant.trl.passes import Batch, local_rows
from calibrant.trl.rewards import Sampled

LEARNS_WITHOUT_SPREAD = {"empo": "rewards agreement", "grpo_care": "adds a reward", "egpo": "learns from wrong answers"}
"""Methods with advantages in groups without reward spread, and why."""
FROM_RIGHT = ("prompt_ids", "prompt_mask")  # padded on the left
OF_TOKENS = (
    "completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps",
    "importance_sampling_ratio",
)  # fmt: skip


class Draw(NamedTuple):
    """Sampled and rewarded rollouts of this process, in group order."""

    inputs: list[dict[str, object]]  # rows of the data set, one per rollout
    output: Batch  # what TRL's `_generate_and_score_completions` returns
    sampled: Sampled


def check_resampling(args: CalibratedGRPOConfig, method: str, dataset: object) -> None:
    """Raises CalibrantError where groups without spread cannot, or should not, be replaced."""
    if not args.resample_uninformative:
        return
    if method in LEARNS_WITHOUT_SPREAD:
        raise CalibrantError(
            f"method '{method}' {LEARNS_WITHOUT_SPREAD[method]} in groups without reward spread, which "
            "--resample-uninformative would replace; leave it out"
        )
    if not hasattr(dataset, "__len__"):
        raise CalibrantError("--resample-uninformative draws prompts by index, which an IterableDataset has not")
    if args.scale_rewards == "batch":
        raise CalibrantError("--resample-uninformative needs scale_rewards 'group' or 'none': batches are put together")
    if args.per_device_train_batch_size * args.steps_per_generation % args.num_generations:
        raise CalibrantError(
            "--resample-uninformative needs whole groups on each process: make per_device_train_batch_size x "
            "steps_per_generation a multiple of num_generations"
        )


def resampled(
    first: Draw,
    draw: Callable[[list[dict[str, object]]], Draw],
    total: Callable[[Tensor], Tensor],
    dataset: Sequence[dict[str, object]],
    args: CalibratedGRPOConfig,
    step: int,
    accelerator: Accelerator,
    pad_token_id: int,
) -> tuple[Draw, int]:
    """The draw of a step with groups without spread replaced, and the number of groups that were drawn for it.

    `draw` samples and rewards rows; `total` is the reward that is optimised, of rewards `[N, G, F]`. All processes draw
    equally many groups, because sampling and rewards are collective.
    """
    size, drawn = args.num_generations, 0
    budget = args.resample_uninformative * len(first.inputs) // size
    further = FurtherPrompts(dataset, (args.seed, step), first, size, accelerator)
    while True:
        good = _informative(first, total, size, accelerator)
        count = torch.tensor([int((~good).sum())], device=accelerator.device)
        count = min(int(accelerator.gather(count).max()), budget - drawn)
        if count <= 0:
            return first, drawn * accelerator.num_processes
        more, drawn = draw(further(count)), drawn + count
        fresh = _informative(more, total, size, accelerator).nonzero()[:, 0]
        stale = (~good).nonzero()[:, 0]
        pairs = min(len(fresh), len(stale))
        first = _replaced(first, more, stale[:pairs], fresh[:pairs], size, accelerator, pad_token_id)


def _informative(draw: Draw, total: Callable[[Tensor], Tensor], size: int, accelerator: Accelerator) -> Tensor:
    """Which groups of this process have reward spread, `[n]`."""
    rewards = draw.sampled.rewards
    spread = has_spread(total(rewards.view(-1, size, rewards.shape[1])))
    return local_rows(spread, len(draw.inputs) // size, accelerator).cpu()


class FurtherPrompts:
    """Rows of a data set in random order, `size` (G) copies each, without prompts that the step has already.

    They depend on the seed, the step and the process alone, so that a resumed run repeats them; processes share none.
    Where the data set has no more, it starts again.
    """

    def __init__(
        self,
        dataset: Sequence[dict[str, object]],
        seed: Sequence[int],
        taken: Draw,
        size: int,
        accelerator: Accelerator,
    ):
        self.dataset, self.size = dataset, size
        order = np.random.default_rng(list(seed)).permutation(len(dataset))
        own = order[accelerator.process_index :: accelerator.num_processes]
        self._taken, self._order = [row["prompt"] for row in taken.inputs[::size]], cycle(own.tolist())
        self._skips = len(own)

    def __call__(self, count: int) -> list[dict[str, object]]:
        """The next `count` groups of rows."""
        return [dict(row) for row in (self._next() for _ in range(count)) for _ in range(self.size)]

    def _next(self) -> dict[str, object]:
        while True:
            row = self.dataset[next(self._order)]
            if row["prompt"] not in self._taken or self._skips <= 0:
                return row
            self._skips -= 1


def _replaced(
    old: Draw, new: Draw, stale: Tensor, fresh: Tensor, size: int, accelerator: Accelerator, pad_token_id: int
) -> Draw:
    """The first draw with its groups `stale` replaced by the groups `fresh` of the second."""
    count = len(old.inputs)
    rows, within = torch.arange(count), torch.arange(size)
    rows[_rows(stale, within)] = count + _rows(fresh, within)
    both = old.inputs + new.inputs
    here = accelerator.process_index
    rewards = torch.cat([x.sampled.rewards[here * len(x.inputs) : (here + 1) * len(x.inputs)] for x in (old, new)])
    columns = old.sampled.columns + new.sampled.columns
    order = rows.tolist()
    sampled = Sampled(
        accelerator.gather(rewards[rows.to(rewards.device)]), [columns[i] for i in order], old.sampled.logged
    )
    return Draw([both[i] for i in order], _joined(old.output, new.output, rows, accelerator, pad_token_id), sampled)


def _rows(groups: Tensor, within: Tensor) -> Tensor:
    return (groups[:, None] * len(within) + within).flatten()


def _joined(old: Batch, new: Batch, rows: Tensor, accelerator: Accelerator, pad_token_id: int) -> Batch:
    known = {*FROM_RIGHT, *OF_TOKENS, "advantages", "num_items_in_batch"}
    if unknown := sorted({*old, *new} - known):
        raise CalibrantError(f"--resample-uninformative works with text alone, not with {', '.join(unknown)}")
    joined: Batch = {}
    for name in old:  # in TRL's order: it reads the number of rows from the first
        value = pad_token_id if name.endswith("_ids") else 0
        if name != "num_items_in_batch":
            joined[name] = torch.cat(_padded(old[name], new[name], name in FROM_RIGHT, value))[
                rows.to(old[name].device)
            ]
    return joined | {"num_items_in_batch": accelerator.gather(joined["completion_mask"].sum()).sum()}


def _padded(a: Tensor, b: Tensor, left: bool, value: int) -> tuple[Tensor, Tensor]:
    """Two tensors `[B, T]` in a common width; those `[B]` unchanged."""
    if a.ndim < 2:
        return a, b
    width = max(a.shape[1], b.shape[1])
    gaps = ((width - x.shape[1], 0) if left else (0, width - x.shape[1]) for x in (a, b))
    first, second = (torch.nn.functional.pad(x, gap, value=value) for x, gap in zip((a, b), gaps, strict=True))
    return first, second
