"""Each metric that TRL logs is TRL's number, whatever of the work is ordered, shared or left out."""

import pytest
from test_micro_batches import half_constant
from test_shared_training import EXACT
from test_trainer import CalibratedGRPOConfig, CalibratedGRPOTrainer, arguments, some_slow, train
from trl import GRPOConfig, GRPOTrainer

PASSES = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8}
SETTINGS = {
    "one pass": {},
    "with a reference": {"beta": 0.01},
    "passes": PASSES,
    "passes with a reference": PASSES | {"beta": 0.01},
    "updates": {"num_iterations": 2, "max_steps": 4},
    "updates of passes": PASSES | {"num_iterations": 2, "max_steps": 4, "beta": 0.01},
    "windows": {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "per_device_train_batch_size": 4,
                "max_steps": 4},
    "generations in a step": {"gradient_accumulation_steps": 4, "steps_per_generation": 2,
                              "per_device_train_batch_size": 8},
    "two steps in a log": PASSES | {"logging_steps": 2, "max_steps": 4},
    **{f"loss {kind}": PASSES | {"loss_type": kind, "num_iterations": 2, "max_steps": 2}
       for kind in ("grpo", "bnpo", "cispo", "sapo", "vespo")},
    "sequence level": PASSES | {"importance_sampling_level": "sequence", "num_iterations": 2},
    "a bonus of entropy": PASSES | {"entropy_coef": 0.01},
}  # fmt: skip
OFTEN = ("updates of passes", "windows", "generations in a step", "two steps in a log", "loss bnpo")
TIMES = {"step_time", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
TIMES |= {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
METHOD = {"method": "gcpo_bot"}
UPDATES = PASSES | {"num_iterations": 2, "max_steps": 4}
WEIGHTED = [(True, UPDATES), (False, {}), (True, {}), (False, UPDATES)]
WEIGHTED += [(share, x) for x in ({"beta": 0.01}, PASSES) for share in (True, False)]


def metrics(trainer):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in trainer.state.log_history]


def assert_trls(ours, theirs, but=()):
    """Every metric of TRL has TRL's value; ours may have more, under other names."""
    assert len(ours) == len(theirs)
    for own, row in zip(ours, theirs, strict=True):
        for name, value in row.items():
            if name not in but:
                assert own[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
        assert all("/" in name for name in own.keys() - row.keys())


def both(policy, questions, folder, changes, reward=half_constant, **own):
    changes = EXACT | {"per_device_train_batch_size": 16, "beta": 0.0} | changes
    theirs = train(policy, questions, arguments(folder / "a", GRPOConfig, **changes), reward, kind=GRPOTrainer)
    ours = train(policy, questions, arguments(folder / "b", **changes, **own), reward)
    return metrics(ours), metrics(theirs)


@pytest.mark.parametrize("setting", some_slow(SETTINGS, often=OFTEN))
def test_metrics_of_grpo_are_trls(policy, questions, tmp_path, setting):
    ours, theirs = both(policy, questions, tmp_path, SETTINGS[setting], method="grpo")
    assert_trls(ours, theirs)
    left_out = max(row.get("batch/left_out", 0.0) for row in ours)
    can = SETTINGS[setting].get("beta", 0.0) == 0.0 and setting not in ("loss bnpo", "a bonus of entropy")
    assert (left_out > 0) == can


@pytest.mark.slow
def test_metrics_of_grpo_are_trls_without_sharing(policy, questions, tmp_path):
    changes = PASSES | {"num_iterations": 2, "max_steps": 4}
    ours, theirs = both(policy, questions, tmp_path, changes, method="grpo", share_prefix=False)
    assert_trls(ours, theirs)


@pytest.mark.parametrize(("share", "changes"), some_slow(WEIGHTED, often=2))
def test_metrics_of_a_weighted_method_are_trls_but_for_what_it_changes(policy, questions, tmp_path, changes, share):
    """At a learning rate of 0 both sample the same completions; the loss and its gradient are weighted."""
    changes = changes | {"learning_rate": 0.0}
    ours, theirs = both(policy, questions, tmp_path, changes, method="gcpo_bot", share_prefix=share)
    assert_trls(ours, theirs, but=("loss", "grad_norm", "train_loss"))


def test_metrics_of_an_evaluation_are_trls(policy, questions, tmp_path):
    found = []
    for kind, config, own in ((GRPOTrainer, GRPOConfig, {}), (CalibratedGRPOTrainer, CalibratedGRPOConfig, METHOD)):
        args = arguments(tmp_path, config, **EXACT, per_device_eval_batch_size=8, **own)
        trainer = kind(policy, half_constant, args, questions, eval_dataset=questions.select(range(4)))
        trainer.evaluate()
        found.append(metrics(trainer))
    theirs, ours = found
    assert_trls(ours, theirs, but=("eval_loss",))
