"""Seconds of the parts of a step: nested parts by hand, and those that a training logs."""

import pytest
from test_trainer import arguments, train

from calibrant.text.inputs import Readers
from calibrant.trl import clock as module
from calibrant.trl.clock import Clock


def test_an_inner_part_is_not_counted_twice(monkeypatch):
    times = iter([1.0, 2.0, 5.0, 6.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    clock = Clock()
    with clock.part("outer"):  # from 1 to 6
        assert clock.timed("inner", divmod)(7, 2) == (3, 1)  # from 2 to 5
    with pytest.raises(ZeroDivisionError):  # from 10 to 20
        clock.readers(Readers(embed=lambda texts: 1 / 0)).embed([])
    assert clock.taken() == {"outer": 2.0, "inner": 3.0, "embedding": 10.0}
    assert clock.taken() == {}


def test_training_logs_the_seconds_of_its_parts(policy, questions, tmp_path):
    passes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
    trainer = train(policy, questions, arguments(tmp_path, method="gcpo_bot", beta=0.01, **passes))
    expected = "generation rewards log_probabilities policy_inputs forward backward scores embedding clustering"
    for row in trainer.state.log_history[:-1]:
        seconds = {name: value for name, value in row.items() if name.startswith("seconds/")}
        assert seconds.keys() == {f"seconds/{name}" for name in expected.split()}
        assert min(seconds.values()) > 0 and sum(seconds.values()) <= row["step_time"]
