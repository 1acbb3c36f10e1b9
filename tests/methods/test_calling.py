"""How methods are found, called and described; what they compute is in test_methods.py."""

import re
import subprocess
import sys

import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import (
    METHODS,
    SOURCES,
    Outcome,
    apply,
    card,
    check_hyperparameters,
    gcpo_bot,
    gcpo_cd,
    hyperparameters,
    optional_inputs,
    required_inputs,
    resolve_method,
    summary,
)
from calibrant.methods.inputs import HYPERPARAMETERS
from calibrant.methods.pages import page
from calibrant.methods.recommended import RECOMMENDED, recommended_values

ORDER = (
    "grpo dr_grpo rloo rd_only gcpo_cd gcpo_bot grpo_se grpo_kle seed_grpo empo grpo_care capo egpo edge_grpo "
    "q_hawkeye eg_spo r2vpo gcpo_grad gradient_snr"
)


def groups_of_four():
    embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]])
    rewards = torch.tensor([[2.0, 0.0, 0.0, 1.0]])
    return Groups(rewards, {"embeddings": embeddings, "clusters": torch.tensor([[0, 0, 1, 1]])})


def test_all_methods_are_there_in_order():
    assert list(METHODS) == ORDER.split()


def test_inputs_and_hyperparameters_are_read_from_the_signature():
    assert required_inputs("grpo") == ("rewards", "where")
    assert required_inputs("gcpo_cd") == ("rewards", "embeddings", "where")
    assert required_inputs(gcpo_bot) == ("rewards", "embeddings", "clusters", "where")
    assert required_inputs("empo") == ("clusters", "where") and optional_inputs("empo") == ("empty",)
    assert optional_inputs("grpo") == () and optional_inputs("egpo") == ("correct", "total_rewards")
    assert hyperparameters("grpo") == {}
    assert hyperparameters(gcpo_cd) == {"alpha": 0.6, "reward_range": (0.0, 2.0), "mean_one": False}


def test_what_each_method_needs():
    needs = {name: " ".join(n for n in required_inputs(name) if n not in ("rewards", "where")) for name in METHODS}
    assert {name: inputs for name, inputs in needs.items() if inputs} == {
        "gcpo_cd": "embeddings",
        "gcpo_bot": "embeddings clusters",
        "grpo_se": "clusters",
        "grpo_kle": "entailment",
        "seed_grpo": "clusters",
        "empo": "clusters",
        "grpo_care": "answer_confidence",
        "capo": "mean_logprob ref_mean_logprob",
        "egpo": "mean_logprob",
        "edge_grpo": "token_entropy",
        "eg_spo": "token_entropy",
        "r2vpo": "ratio_variance",
        "gcpo_grad": "head_gram",
        "gradient_snr": "head_gram",
    }


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_name_a_summary_and_known_inputs(name):
    assert METHODS[name].__name__ == name
    assert resolve_method(name) is METHODS[name]
    assert 10 < len(summary(name)) <= 120 and summary(name).endswith(".")
    assert "where" in required_inputs(name)
    assert {*required_inputs(name), *optional_inputs(name)} <= set(SOURCES)


@pytest.mark.parametrize("name", METHODS)
def test_the_docstring_or_the_package_describes_every_parameter(name):
    text, shared = METHODS[name].__doc__, {"rewards", "where", "clusters", *HYPERPARAMETERS}
    for parameter in {*required_inputs(name), *optional_inputs(name), *hyperparameters(name)} - shared:
        assert re.search(rf"^        {parameter}: ", text, flags=re.MULTILINE), parameter
    rows = [line for line in page(name, name).splitlines() if re.match(r"\| `\w+` \|", line)]
    assert len(rows) == len(hyperparameters(name)) and not any(line.endswith("|  |") for line in rows)


@pytest.mark.parametrize("name", METHODS)
def test_every_card_is_complete(name):
    about = card(name)
    assert about.name == name and about.summary == summary(name)
    assert "-" not in (about.paper, about.effect, about.certainty, about.when)
    assert about.per in ("prompt", "rollout", "reward")
    assert re.search(r"\((a|a\*|b|c)\)", about.certainty)
    assert about.when.endswith(".") and not any("  " in value for value in about if isinstance(value, str))
    assert set(about.needs) | {"where"} == set(required_inputs(name)) | {"where"}
    assert about.optional == optional_inputs(name)


def test_the_settings_that_methods_recommend():
    assert {name: dict(card(name).recommended) for name in METHODS if card(name).recommended} == {
        "dr_grpo": {"loss_type": "dr_grpo"},
        "grpo_care": {"beta": 0.0},
        "capo": {"beta": 0.0, "loss_type": "grpo"},
        "r2vpo": {"num_iterations": 2},
    }


def test_a_card_of_a_method_that_says_nothing():
    def mine(rewards, clusters, where, empty=None):
        return None

    about = card(mine)
    assert about[:8] == ("mine", *"-------")
    assert about.needs == ("rewards", "clusters") and about.optional == ("empty",) and about.recommended == {}


def test_a_card_of_a_method_of_a_user():
    def mine(rewards, where):
        """Half of it.

        Paper: none
        Effect: x 0.5, which is
            half

        Per: prompt
        """

    about = card(mine)
    assert (about.summary, about.paper, about.per) == ("Half of it.", "none", "prompt")
    assert about.effect == "x 0.5, which is half"
    assert about.certainty == about.when == "-"


def test_recommended_settings_are_plain_data_without_torch():
    code = (
        "import sys; from calibrant.methods.recommended import RECOMMENDED; print('torch' in sys.modules, *RECOMMENDED)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", *METHODS]
    assert all(setting.certainty in ("a", "a*", "b", "c") for row in RECOMMENDED.values() for setting in row.values())


def test_a_method_of_a_user_recommends_settings():
    def mine(rewards, where):
        return None

    assert recommended_values(mine) == {}
    mine.recommended = {"beta": 0.0, "num_iterations": 2}
    assert recommended_values(mine) == card(mine).recommended == mine.recommended
    assert "`--beta 0.0`; `--num-iterations 2`" in page("mine", mine)
    mine.recommended = ["beta"]
    with pytest.raises(CalibrantError, match=r"'mine'.*'recommended' has to be a dictionary"):
        card(mine)


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
        ("mine.LEVEL", "'mine.LEVEL' is a int, not a function"),
        ("needy.f", "'needy' cannot be imported.*a_package_that_does_not_exist"),
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
        ("mine.based", "base 'median'.*standardised, centred, leave_one_out or a tensor of advantages"),
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
