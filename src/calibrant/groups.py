"""Groups of rollouts: the one data type, and the conventions of `groups`, `advantages`, `weights` and `signals`.

* Axes: `N` prompts, `G` rollouts per prompt, then the rest. Rewards are `[..., N, G]`: further leading axes are batch
  axes. `where`, boolean, of the shape of the rewards (`[..., N, G]`), says which rollouts count; None: all.
* A reward that is not finite marks an unscorable rollout: it is out of every statistic and its advantage is 0.
* Fewer than two scorable rollouts: nothing to compare, the advantage is 0 and the weight is 1.
* A group has spread if `max - min > tol`, never if `std > 0`: eight rewards of 0.3 in float32 have a standard
  deviation of 3e-8, and no information. Without spread the advantage is exactly 0.
* Statistics are computed in float64 and returned in the type of the input (integers: the default float type).
* Results are finite for every input. So that squares stay finite too, float64 rewards beyond 1e100 count as 1e100.
* Nothing here is differentiated: inputs are detached.
* `CalibrantError` is raised where shapes or options are not as documented. Public functions check once; `valid`,
  `masked` and `*_over` do not, for callers that have checked.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from calibrant.checks import check_reward_range, check_shapes
from calibrant.errors import CalibrantError

LARGEST_REWARD = 1e100
RANGE_TOLERANCE = 1e-6
NO_SPREAD = 1e-6  # the largest `max - min` of the rewards of a group that counts as no spread


@dataclass(frozen=True, eq=False)
class Groups:
    """Rewards of whole groups, `[N, G]`, and further inputs of methods, name -> `[N, G, ...]`.

    An input named `where` (boolean) excludes rollouts beside those without a finite reward.

    >>> groups = Groups(torch.tensor([[1.0, 0.0, torch.nan]]), {"clusters": torch.tensor([[0, 1, 1]])})
    >>> groups.where
    tensor([[ True,  True, False]])
    """

    rewards: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shapes("Groups", rewards=(self.rewards, "N G"), where=(self.inputs.get("where"), "N G"))
        for name, tensor in self.inputs.items():
            _check_leading("Groups", "N, G", name, tensor, self.rewards)

    @property
    def where(self) -> Tensor:
        """Which rollouts count, `[N, G]` boolean."""
        return valid(self.rewards, self.inputs.get("where"))

    @classmethod
    def from_flat(cls, rewards: Tensor, num_generations: int, **inputs: Tensor) -> "Groups":
        """Groups from rows `[N * G, ...]` in group order: rows `n * G` to `n * G + G - 1` answer prompt `n`.

        >>> Groups.from_flat(torch.tensor([1.0, 0.0, 2.0, 2.0]), 2).rewards
        tensor([[1., 0.],
                [2., 2.]])
        """
        check_shapes("Groups.from_flat", rewards=(rewards, "N*G"))
        for name, tensor in inputs.items():
            _check_leading("Groups.from_flat", "N*G", name, tensor, rewards)
        split = {name: group_rows(tensor, num_generations) for name, tensor in inputs.items()}
        return cls(group_rows(rewards, num_generations), split)


def _check_leading(caller: str, letters: str, name: str, tensor: Tensor, rewards: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.shape[: rewards.ndim] != rewards.shape:
        raise CalibrantError(
            f"{caller}: the input '{name}' has to be [{letters}, ...] with rewards [{letters}] = "
            f"{list(rewards.shape)}, got {_shape(tensor)}"
        )


def _shape(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def group_rows(rows: Tensor, num_generations: int) -> Tensor:
    """Splits flat rows in group order, `[N * G, ...]`, into groups, `[N, G, ...]`.

    >>> group_rows(torch.arange(6), 3)
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """
    if not isinstance(rows, Tensor) or rows.ndim < 1:
        raise CalibrantError(f"group_rows: expected rows [N*G, ...], got {_shape(rows)}")
    _check_divides(len(rows), num_generations, "group_rows")
    return rows.reshape(len(rows) // num_generations, num_generations, *rows.shape[1:])


def _check_divides(rows: int, num_generations: int, caller: str) -> None:
    if not isinstance(num_generations, int) or isinstance(num_generations, bool) or num_generations < 1:
        raise CalibrantError(f"{caller}: num_generations has to be a positive integer, got {num_generations!r}")
    if rows % num_generations:
        raise CalibrantError(
            f"{caller}: {rows} rows do not split into groups of {num_generations} rollouts; the number of rows has "
            "to be a multiple of num_generations (is a group cut off at the end of a batch?)"
        )


def assert_integrity(keys: Sequence[Hashable], num_generations: int) -> None:
    """Raises unless each block of G consecutive rows has one key, e.g. the prompt; two blocks may have the same key.

    >>> assert_integrity(["a", "a", "b", "c"], 2)
    Traceback (most recent call last):
    calibrant.errors.CalibrantError: broken group: row 3 of block 1 (rows 2 to 3, 2 rollouts per prompt) answers \
another prompt than row 2; rows 2 to 3 are A B with A = 'b', B = 'c'; keep the rollouts of a prompt in consecutive \
rows (a shuffled or re-chunked batch, or a wrong num_generations?)
    """
    _check_divides(len(keys), num_generations, "assert_integrity")
    for start in range(0, len(keys), num_generations):
        block = list(keys[start : start + num_generations])
        other = next((i for i, key in enumerate(block) if key != block[0]), None)
        if other is not None:
            raise CalibrantError(_broken(block, start, other))


def _broken(block: list[Hashable], start: int, other: int) -> str:
    distinct = list(dict.fromkeys(block))
    names = {key: chr(ord("A") + i) if i < 26 else f"#{i}" for i, key in enumerate(distinct)}
    rows = f"rows {start} to {start + len(block) - 1}"
    legend = ", ".join(f"{names[key]} = {_short(key)}" for key in distinct[:4]) + ", ..." * (len(distinct) > 4)
    return (
        f"broken group: row {start + other} of block {start // len(block)} ({rows}, {len(block)} rollouts per prompt) "
        f"answers another prompt than row {start}; {rows} are {' '.join(names[key] for key in block)} with {legend}; "
        "keep the rollouts of a prompt in consecutive rows (a shuffled or re-chunked batch, or a wrong "
        "num_generations?)"
    )


def _short(key: Hashable, limit: int = 60) -> str:
    text = repr(key)
    return text if len(text) <= limit else f"{text[: limit // 2]}...{text[-limit // 2 :]}"


def valid(rewards: Tensor, where: Tensor | None = None) -> Tensor:
    """Which rollouts count, `[..., N, G]` boolean: those with a finite reward that `where` does not exclude.

    >>> valid(torch.tensor([[1.0, torch.nan, 0.0]]), torch.tensor([[True, True, False]]))
    tensor([[ True, False, False]])
    """
    finite = torch.isfinite(rewards)
    return finite if where is None else finite & where


def masked(rewards: Tensor, where: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rewards in float64 with 0 in place of those that do not count, and the mask of those that do."""
    mask = valid(rewards, where)
    values = torch.where(mask, rewards.detach().double(), 0.0)
    return values.clamp(-LARGEST_REWARD, LARGEST_REWARD), mask


def like_input(values: Tensor, source: Tensor) -> Tensor:
    """Values in the floating type of `source`, finite: what is too large becomes the largest number of that type.

    >>> like_input(torch.tensor([1e6, 0.5], dtype=torch.float64), torch.zeros(1, dtype=torch.float16))
    tensor([6.5504e+04, 5.0000e-01], dtype=torch.float16)
    """
    dtype = source.dtype if source.is_floating_point() else torch.get_default_dtype()
    limit = torch.finfo(dtype)
    return values.double().nan_to_num(nan=0.0).clamp(limit.min, limit.max).to(dtype)


def group_count(rewards: Tensor, where: Tensor | None = None) -> Tensor:
    """How many rollouts of each group count, `[..., N]`, integers from 0 to G.

    >>> group_count(torch.tensor([[1.0, torch.nan, 0.0]]))
    tensor([2])
    """
    _check("group_count", rewards, where)
    return valid(rewards, where).sum(-1)


def group_mean(rewards: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean reward of each group, `[..., N]`, over the rollouts that count; 0 if none does.

    `mean = sum_i r_i / n`, clamped to the smallest and the largest reward, so that the mean of equal rewards is exact.

    >>> group_mean(torch.tensor([[1.0, 0.0, 0.5, torch.nan]]))
    tensor([0.5000])
    """
    _check("group_mean", rewards, where)
    return like_input(mean_over(*masked(rewards, where)), rewards)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """`group_mean` of values that are float64 and 0 out of the mask."""
    low, high = _extremes(values, mask)
    mean = values.sum(-1) / mask.sum(-1).clamp(min=1)
    return torch.where(mask.any(-1), mean.clamp(low, high), 0.0)


def group_std(rewards: Tensor, where: Tensor | None = None, *, ddof: int = 1) -> Tensor:
    """Standard deviation of the rewards of each group, `[..., N]`; 0 if fewer than two rollouts count.

    `std = sqrt(sum_i (r_i - mean)^2 / (n - ddof))`. With `ddof=1` (unbiased) as TRL and verl do; with `ddof=0` the
    population's.

    >>> group_std(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    tensor([0.5000])
    """
    _check("group_std", rewards, where)
    check_ddof("group_std", ddof)
    return like_input(std_over(*masked(rewards, where), ddof), rewards)


def check_ddof(caller: str, ddof: int) -> None:
    """Raises CalibrantError unless `ddof` is 0 or 1."""
    if ddof not in (0, 1):
        raise CalibrantError(f"{caller}: ddof has to be 0 (population) or 1 (unbiased), got {ddof!r}")


def std_over(values: Tensor, mask: Tensor, ddof: int = 1) -> Tensor:
    """`group_std` of values that are float64 and 0 out of the mask."""
    deviation = torch.where(mask, values - mean_over(values, mask)[..., None], 0.0)
    return (deviation.square().sum(-1) / (mask.sum(-1) - ddof).clamp(min=1)).sqrt()


def group_spread(rewards: Tensor, where: Tensor | None = None) -> Tensor:
    """Largest minus smallest reward of each group, `[..., N]`, over the rollouts that count; 0 if none does.

    >>> group_spread(torch.tensor([[0.25, 1.0, torch.nan]]))
    tensor([0.7500])
    """
    _check("group_spread", rewards, where)
    return like_input(spread_over(*masked(rewards, where)), rewards)


def spread_over(values: Tensor, mask: Tensor) -> Tensor:
    """`group_spread` of values that are float64 and 0 out of the mask."""
    low, high = _extremes(values, mask)
    return (high - low).clamp(min=0.0)


def _extremes(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest counted value of each group; +inf and -inf if there is none."""
    low = torch.where(mask, values, torch.inf).amin(-1)
    return low, torch.where(mask, values, -torch.inf).amax(-1)


def has_spread(rewards: Tensor, where: Tensor | None = None, tol: float = NO_SPREAD) -> Tensor:
    """Whether the rewards of a group differ, `[..., N]` boolean: `max - min > tol` over the rollouts that count.

    `tol` is in units of the reward.

    >>> has_spread(torch.tensor([[0.3, 0.3, 0.3], [0.3, 0.4, torch.nan], [1.0, torch.nan, torch.nan]]))
    tensor([False,  True, False])
    """
    _check("has_spread", rewards, where)
    return spread_over(*masked(rewards, where)) > tol


def _check(caller: str, rewards: Tensor, where: Tensor | None) -> None:
    check_shapes(caller, rewards=(rewards, "... N G"), where=(where, "... N G"))


def count_out_of_range(rewards: Tensor, reward_range: Sequence[float]) -> int:
    """How many finite rewards lie outside of (lowest, highest), by more than 1e-6 of the width of that range.

    `signals.reward_dispersion` is clipped there; callers warn with this count.

    >>> count_out_of_range(torch.tensor([[0.0, 2.0, 2.5, torch.nan]]), (0.0, 2.0))
    1
    """
    low, high = check_reward_range("count_out_of_range", reward_range)
    slack = RANGE_TOLERANCE * (high - low)
    values = rewards.detach().double()
    outside = (values < low - slack) | (values > high + slack)
    return int((outside & torch.isfinite(values)).sum())
