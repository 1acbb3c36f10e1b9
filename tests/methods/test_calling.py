"""How methods are found and called."""

import sys

import pytest
import torch
from builders_methods import groups_of_four

from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import (
    Outcome,
    apply,
    check_hyperparameters,
    gcpo_bot,
    gcpo_cd,
    hyperparameters,
    optional_inputs,
    required_inputs,
    resolve_method,
)


def test_inputs_and_hyperparameters_are_read_from_the_signature():
    assert required_inputs("grpo") == ("rewards", "where")
    assert required_inputs("gcpo_cd") == ("rewards", "embeddings", "where")
    assert required_inputs(gcpo_bot) == ("rewards", "embeddings", "clusters", "where")
    assert required_inputs("empo") == ("clusters", "where") and optional_inputs("empo") == ("empty",)
    assert optional_inputs("grpo") == () and optional_inputs("egpo") == ("correct", "total_rewards")
    assert hyperparameters("grpo") == {}
    assert hyperparameters(gcpo_cd) == {"alpha": 0.6, "reward_range": (0.0, 2.0), "mean_one": False}


def test_what_is_missing_says_what_supplies_it():
    with pytest.raises(CalibrantError, match=r"'gcpo_bot' needs the input 'embeddings' \(the texts and an embedding "):
        apply("gcpo_bot", Groups(torch.zeros(1, 2)))
    with pytest.raises(CalibrantError, match=r"'clusters' \(the texts and an answer key"):
        apply("gcpo_bot", Groups(torch.zeros(1, 2)))
    with pytest.raises(CalibrantError, match=r"'egpo' needs the input 'mean_logprob' \(.*logprob and num_tokens\)"):
        apply("egpo", groups_of_four())


def test_a_name_that_is_no_input_gets_the_nearest():
    def mine(rewards, embedings, where):
        return None

    said = r"'mine' names the input 'embedings'.*did you mean 'embeddings'.*clusters"
    with pytest.raises(CalibrantError, match=said):
        apply(mine, groups_of_four())


def test_hyperparameters_that_are_unknown():
    with pytest.raises(CalibrantError, match=r"no hyper-parameter 'alhpa' \(did you mean 'alpha'\?\)"):
        apply("gcpo_cd", groups_of_four(), alhpa=0.5)
    with pytest.raises(CalibrantError, match="'grpo' has no hyper-parameter 'alpha'; it takes none"):
        check_hyperparameters("grpo", {"alpha": 0.5})


@pytest.mark.parametrize(
    "name, nearest",
    [("gcpo-bot", "gcpo_bot"), ("GCPO_CD", "gcpo_cd"), ("grp", "grpo"), ("rdonly", "rd_only"), ("qhawk", "q_hawkeye")],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(CalibrantError, match=rf"unknown method '{name}' \(did you mean '{nearest}'\?\); known: grpo, "):
        resolve_method(name)


@pytest.mark.parametrize("nothing", ["", 3, None, ["grpo"]])
def test_what_is_no_name_is_refused(nothing):
    with pytest.raises(CalibrantError, match="unknown method"):
        resolve_method(nothing)


def test_a_method_that_names_no_rewards_does_not_need_them():
    seen = []

    def mine(clusters, where):
        seen.append(where.tolist())
        return Outcome(torch.ones(1, 3), {}, torch.zeros(1, 3))

    rewards, clusters = torch.tensor([[1.0, torch.nan, 0.0]]), torch.zeros(1, 3, dtype=torch.int64)
    apply(mine, Groups(rewards, {"clusters": clusters}))
    apply(mine, Groups(rewards, {"clusters": clusters, "where": torch.tensor([[True, True, False]])}))
    assert seen == [[[True, True, True]], [[True, True, False]]]


def test_a_method_with_memory():
    def mine(rewards, where, state):
        return Outcome(rewards * 0 + 1, {}, rewards, {"steps": state.get("steps", torch.zeros(())) + 1})

    assert required_inputs(mine) == ("rewards", "where") and optional_inputs(mine) == ()
    first = apply(mine, groups_of_four())
    second = apply(mine, groups_of_four(), first.state)
    assert second.state == {"steps": 2} and apply("grpo", groups_of_four(), first.state).state is None


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from calibrant.methods import Outcome, grpo\n"
        "import torch\n"
        "LEVEL = 3\n"
        "def half(rewards, where, *, factor=0.5):\n"
        "    out = grpo(rewards, where)\n"
        "    return Outcome(out.weights * factor, {})\n"
        "def optional(rewards, where, clusters=None):\n"
        "    return Outcome(rewards * 0 + 1, {'seen': torch.full(rewards.shape[:1], clusters is not None)})\n"
        "def raw(rewards, where): return Outcome(rewards * 0 + 1, {}, rewards * 2)\n"
        "def broken(rewards, where): return rewards\n"
        "def flat(rewards, where): return Outcome(rewards.flatten(), {})\n"
        "def endless(rewards, where): return Outcome(rewards, {}, rewards / 0)\n"
        "def heavy(rewards, where): return Outcome(rewards / 0, {})\n"
        "def old(rewards, where): return Outcome(rewards, rewards, {})\n"
        "def scored(rewards, where): return Outcome(rewards, {'each': rewards, 'all': rewards.mean(1)})\n"
        "def cubic(rewards, where): return Outcome(rewards, {'rewards': rewards[..., None]})\n"
        "def short(rewards, where): return Outcome(rewards, {'rewards': rewards[:, :2]})\n"
        "def based(rewards, where): return Outcome(rewards, {}, 'median')\n"
        "def partly(rewards, where): return Outcome(rewards, {}, rewards, None, rewards[:, :2] > 0)\n"
        "def counted(rewards, where): return Outcome(rewards, {}, rewards, None, rewards)\n"
        "def anything(rewards, **rest): return None\n"
        "def undecided(rewards, *, factor): return None\n"
    )
    (tmp_path / "needy.py").write_text("import a_package_that_does_not_exist\n")
    (tmp_path / "faulty.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("mine", "needy", "faulty"):
        sys.modules.pop(name, None)


def test_a_user_method_by_its_dotted_path(user_module):
    groups = groups_of_four()
    plain = apply("grpo", groups).advantages
    assert torch.equal(apply("mine.half", groups).advantages, plain * 0.5)
    assert torch.equal(apply("mine.half", groups, factor=0.25).advantages, plain * 0.25)
    assert required_inputs("mine.half") == ("rewards", "where") and hyperparameters("mine.half") == {"factor": 0.5}


def test_the_outcome_of_a_user_method_is_detached(user_module):
    groups = Groups(torch.tensor([[1.0, 0.0]], requires_grad=True))
    outcome = apply("mine.raw", groups)
    assert not outcome.advantages.requires_grad and not outcome.weights.requires_grad


def test_an_optional_input_is_passed_if_it_is_there(user_module):
    assert required_inputs("mine.optional") == ("rewards", "where")
    assert apply("mine.optional", groups_of_four()).scores["seen"].tolist() == [True]
    assert apply("mine.optional", Groups(torch.zeros(1, 2))).scores["seen"].tolist() == [False]


@pytest.mark.parametrize(
    "path, message",
    [
        ("no_such_module.f", "'no_such_module' cannot be imported.*PYTHONPATH"),
        ("mine.hlaf", r"'mine' has no 'hlaf' \(did you mean 'half'\?\)"),
        ("mine.LEVEL", "'mine.LEVEL' has to be a function, got int"),
        ("needy.f", "'needy' cannot be imported.*'a_package_that_does_not_exist'\\)$"),
        ("faulty.f", "'faulty' cannot be imported.*SyntaxError"),
        ("mine.anything", "name each input"),
        ("mine.undecided", "'factor' needs a default"),
        ("mine.", "has no ''"),
        (".mine", "cannot be imported"),
    ],
)
def test_a_dotted_path_that_leads_nowhere(user_module, path, message):
    with pytest.raises(CalibrantError, match=message):
        resolve_method(path)


@pytest.mark.parametrize(
    "path, message",
    [
        ("mine.broken", "has to return an Outcome, got Tensor"),
        ("mine.flat", r"weights \[N, G\].*\[4\]"),
        ("mine.endless", "advantages that are not finite"),
        ("mine.heavy", "weights that are not finite"),
        ("mine.old", "scores have to be a dictionary, got Tensor"),
        ("mine.cubic", r"score rewards \[N\].*\[1, 4, 1\]"),
        ("mine.short", r"score rewards \[N, G\].*\[1, 2\]"),
        ("mine.based", "base 'median'.*standardised, centred, leave_one_out, mean_deviation or a tensor"),
        ("mine.partly", r"replaced \[N, G\].*\[1, 2\]"),
        ("mine.counted", "replaced has to be a boolean mask"),
    ],
)
def test_a_result_that_is_no_outcome(user_module, path, message):
    with pytest.raises(CalibrantError, match=message):
        apply(path, groups_of_four())


def test_scores_may_belong_to_groups_or_to_rollouts(user_module):
    scores = apply("mine.scored", groups_of_four()).scores
    assert scores["each"].shape == (1, 4) and scores["all"].shape == (1,)


def test_base_advantages_of_the_caller():
    groups, own = groups_of_four(), torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert torch.equal(apply("grpo", groups, bases={"standardised": own}).advantages, own)
    found = apply("rd_only", groups, bases={"standardised": own})
    assert torch.equal(found.advantages, own * found.weights) and torch.equal(found.base, own)
    assert torch.equal(apply("dr_grpo", groups, bases={"standardised": own}).base, apply("dr_grpo", groups).base)
    assert torch.equal(apply("dr_grpo", groups, bases={"centred": own}).base, own)


def test_shapes_are_checked_once_each(monkeypatch):
    """Of arguments of public functions: the method, its signals and weights, its base and its result."""
    calls = []
    for name, module in list(sys.modules.items()):
        if name.startswith("calibrant") and hasattr(module, "check_shapes"):
            monkeypatch.setattr(module, "check_shapes", lambda caller, **_: calls.append(caller))
    apply("gcpo_bot", groups_of_four())
    assert len(calls) <= 10, calls


def test_weights_per_token():
    def mine(rewards, where):
        return Outcome(torch.arange(12.0).view(1, 4, 3), {}, "centred")

    found = apply(mine, groups_of_four())
    assert torch.equal(found.advantages, (groups_of_four().rewards - 0.75)[..., None] * found.weights)
