"""Callbacks of a training run: metrics file, progress bar, marks of checkpoints, stopping on request."""

import math
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from calibrant.files import append_json_lines
from calibrant.train.checkpoints import mark_complete
from calibrant.train.runs import Run

Logs = dict[str, object] | None


class MetricsWriter(TrainerCallback):
    """Appends the logs of every step to `metrics.jsonl`, without NaN and infinities, which JSON does not have."""

    def __init__(self, run: Run):
        self.run = run

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Logs = None, **_: object
    ) -> None:
        """Writes one line per optimisation step."""
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        finite = {k: v for k, v in logs.items() if isinstance(v, (int, float)) and math.isfinite(v)}
        if "step_time" in finite:
            finite["seconds"] = finite.pop("step_time")
        append_json_lines(self.run.metrics, [{"step": state.global_step, **finite}])


class CheckpointMarker(TrainerCallback):
    """Saves a checkpoint after the last step, and marks each checkpoint once it is complete."""

    def __init__(self, run: Run, method: str):
        self.run, self.method = run, method

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Requests a checkpoint after the last step, whatever `save_every` is."""
        control.should_save |= state.global_step >= state.max_steps
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Writes the mark once every process has written its files."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            mark_complete(folder, step=state.global_step, method=self.method)


class TrainingProgress(TrainerCallback):
    """A progress bar over steps with reward, weight and KL."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="train", unit="step",
            disable=not state.is_world_process_zero,
        )  # fmt: skip

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Logs = None, **_: object
    ) -> None:
        shown = {"reward": "reward", "weight": "group/weight/mean", "kl": "kl"}
        values = {name: logs[key] for name, key in shown.items() if logs and logs.get(key) is not None}
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.bar.close()


class GracefulStop(TrainerCallback):
    """Context manager: the first Ctrl-C or SIGTERM ends training after the current step, with a checkpoint.

    A second one ends training at once, without a checkpoint.
    """

    def __init__(self) -> None:
        self.requested = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "GracefulStop":
        self._handlers = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for which, handler in self._handlers.items():
            signal.signal(which, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if PartialState().is_main_process:
            tqdm.write(
                "stopping after this step, with a checkpoint; a second Ctrl-C stops at once and saves nothing more",
                file=sys.stderr,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Requests a checkpoint and the end of training, once all passes over the batch of rollouts are made."""
        if any(gather_object([self.requested])) and state.global_step % getattr(args, "num_iterations", 1) == 0:
            control.should_save = control.should_training_stop = True
        return control
