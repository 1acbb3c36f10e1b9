"""Rollout files of a training run, one per generation batch."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from calibrant.files import disk_full
from calibrant.rollouts import write_rollouts
from calibrant.scorer import Scored, rollout_rows
from calibrant.trl.columns import RolloutColumns
from calibrant.user_code import describe

ROLLOUTS = "_rollouts"
"""Folder of rollout files in the output directory: `push_to_hub` uploads that directory, except `_*`."""


class RolloutFiles:
    """Writes `step-NNNNNN.parquet`, then `step-NNNNNN.1.parquet` for the next batch of a step, and so on.

    They go to `folder`; None: to `ROLLOUTS` in the output directory.
    """

    def __init__(self, folder: str | None, output_dir: str):
        self.folder = Path(folder or Path(output_dir) / ROLLOUTS)
        self.last, self.warned = (-1, 0), False

    def write(self, step: int, scored: Scored, columns: RolloutColumns) -> None:
        """Writes the rollouts of a step; the first failure is a warning; only a full disk ends training."""
        part = self.last[1] + 1 if self.last[0] == step else 0
        self.last = (step, part)
        path = self.folder / f"step-{step:06d}{f'.{part}' if part else ''}.parquet"
        try:
            write_rollouts(path, rollout_rows(scored, columns, step=step))
        except Exception as error:
            if disk_full(error):
                raise
            if not self.warned:
                self.warned = True
                warnings.warn(f"'{path}' was not written ({describe(error)}); training goes on", stacklevel=3)


def model_columns(given: Mapping[str, Tensor], num_tokens: list[int]) -> dict[str, list[float]]:
    """Columns of a rollout file from models: sums of log-probabilities over a completion, means of the rest."""
    lengths = torch.tensor(num_tokens)
    columns = {name: given[name] for name in ("token_entropy", "answer_confidence") if name in given}
    for column, name in (("logprob", "mean_logprob"), ("ref_logprob", "ref_mean_logprob")):
        if name in given:
            columns[column] = given[name].cpu() * lengths
    return {name: x.tolist() for name, x in columns.items()}
