import math
import sys

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.advantages import standardised
from calibrant.errors import CalibrantError
from calibrant.groups import Groups
from calibrant.methods import (
    METHODS,
    Outcome,
    apply,
    gcpo_bot,
    gcpo_cd,
    grpo,
    hyperparameters,
    rd_only,
    required_inputs,
    resolve,
    summary,
)

NAN, INF = math.nan, math.inf
FIRST = ["grpo", "rd_only", "gcpo_cd", "gcpo_bot"]
WEIGHING = ["rd_only", "gcpo_cd", "gcpo_bot"]


def groups_of_four(dtype=torch.float64):
    embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]], dtype=dtype)
    rewards = torch.tensor([[2.0, 0.0, 0.0, 1.0]], dtype=dtype)
    return Groups(rewards, {"embeddings": embeddings, "clusters": torch.tensor([[0, 0, 1, 1]])})


def random_groups(n=20, size=6, width=5, dtype=torch.float64, seed=0, nan=0.2):
    generator = torch.Generator().manual_seed(seed)
    rewards = (torch.rand(n, size, generator=generator, dtype=torch.float64) * 2).to(dtype)
    rewards[torch.rand(n, size, generator=generator) < nan] = NAN
    embeddings = torch.randn(n, size, width, generator=generator, dtype=torch.float64).to(dtype)
    return Groups(rewards, {"embeddings": embeddings, "clusters": torch.randint(0, 4, (n, size), generator=generator)})


def test_the_vector_of_four():
    cd, bot, rd = (apply(name, groups_of_four()) for name in ("gcpo_cd", "gcpo_bot", "rd_only"))
    # alpha_G = 0.6 / ln 4 = 0.4328085
    # 1 - 0.4328085 * 0.375^2; 1 - 0.4328085 * 0.0943789^2; 1 + 0.4328085 * 0.75
    assert cd.scores["cosine_dispersion"].item() == pytest.approx(0.375, abs=1e-7)
    assert cd.scores["geometric_weight"].item() == pytest.approx(0.9391363, abs=1e-7)
    assert bot.scores["barycentric_transport"].item() == pytest.approx(0.0943789, abs=1e-7)
    assert bot.scores["geometric_weight"].item() == pytest.approx(0.9961448, abs=1e-7)
    for outcome in (cd, bot, rd):
        assert outcome.scores["reward_dispersion"].item() == pytest.approx(0.75, abs=1e-7)
        assert outcome.scores["reward_weight"].item() == pytest.approx(1.3246064, abs=1e-7)
    assert cd.weights[0].tolist() == pytest.approx([0.9391363 * 1.3246064] * 4, abs=1e-6)
    assert bot.weights[0].tolist() == pytest.approx([0.9961448 * 1.3246064] * 4, abs=1e-6)
    assert rd.weights[0].tolist() == pytest.approx([1.3246064] * 4, abs=1e-6)
    # mean 0.75, std sqrt((1.5625 + 0.5625 + 0.5625 + 0.0625) / 3) = 0.9574271
    base = [x / (0.9574271 + 1e-4) for x in (1.25, -0.75, -0.75, 0.25)]
    assert cd.advantages[0].tolist() == pytest.approx([a * 0.9391363 * 1.3246064 for a in base], abs=1e-6)


def test_scores_of_each_method():
    found = {name: list(apply(name, groups_of_four()).scores) for name in FIRST}
    weights = ["geometric_weight", "reward_weight"]
    assert found == {
        "grpo": [],
        "rd_only": ["reward_dispersion", "reward_weight"],
        "gcpo_cd": ["cosine_dispersion", "reward_dispersion", *weights],
        "gcpo_bot": ["barycentric_transport", "reward_dispersion", *weights],
    }


def test_grpo_is_the_standardised_advantage():
    groups = random_groups()
    outcome = apply("grpo", groups)
    assert torch.equal(outcome.advantages, standardised(groups.rewards))
    assert torch.equal(outcome.weights, torch.ones(20, 6).double())
    assert outcome.base == "standardised" and outcome.scores == {}


@pytest.mark.parametrize("name", WEIGHING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mean_one", [False, True])
def test_without_strength_a_method_is_grpo_to_the_bit(name, dtype, mean_one):
    groups = random_groups(dtype=dtype)
    outcome, plain = apply(name, groups, alpha=0.0, mean_one=mean_one), apply("grpo", groups)
    assert torch.equal(outcome.advantages, plain.advantages) and torch.equal(outcome.weights, plain.weights)
    assert outcome.advantages.dtype == outcome.weights.dtype == dtype


@pytest.mark.parametrize("name", WEIGHING)
@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_method_is_the_loop(name, size):
    groups = random_groups(25, size, seed=size)
    where = groups.where & (torch.rand(25, size, generator=torch.Generator().manual_seed(1)) > 0.2)
    outcome = apply(name, Groups(groups.rewards, {**groups.inputs, "where": where}), alpha=0.9, reward_range=(0.0, 2.5))
    for n in range(25):
        r, w = groups.rewards[n].tolist(), where[n].tolist()
        e, c = groups.inputs["embeddings"][n].tolist(), groups.inputs["clusters"][n].tolist()
        uncertainty = {
            "rd_only": 0.0,
            "gcpo_cd": oracles.cosine_dispersion(e, w),
            "gcpo_bot": oracles.barycentric_transport(e, c, w),
        }[name]
        weight = oracles.gcpo_weight(uncertainty, oracles.reward_dispersion(r, w, 0.0, 2.5), sum(w), 0.9)
        assert outcome.weights[n].tolist() == pytest.approx([weight] * size, rel=1e-12)
        expected = [a * weight for a in oracles.standardised(r, w)]
        assert outcome.advantages[n].tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_alpha_uses_the_number_of_scorable_rollouts():
    # 4 of 6 are scorable: alpha_G = 0.6 / ln 4, half of them correct: RD = 1
    rewards = torch.tensor([[2.0, 0.0, NAN, 2.0, 0.0, NAN]], dtype=torch.float64)
    assert rd_only(rewards, None).weights[0].tolist() == pytest.approx([1 + 0.6 / math.log(4)] * 6)


@pytest.mark.parametrize("name", WEIGHING)
def test_masked_is_dropped(name):
    groups = random_groups(nan=0.0)
    damaged = groups.rewards.clone()
    damaged[:, [1, 4]] = NAN
    garbage = {k: v.clone() for k, v in groups.inputs.items()}
    garbage["embeddings"][:, [1, 4]] = NAN
    keep = [0, 2, 3, 5]
    whole = apply(name, Groups(damaged, garbage))
    part = apply(name, Groups(groups.rewards[:, keep], {k: v[:, keep] for k, v in groups.inputs.items()}))
    torch.testing.assert_close(whole.advantages[:, keep], part.advantages, rtol=1e-12, atol=1e-12)
    assert (whole.advantages[:, [1, 4]] == 0).all()
    torch.testing.assert_close(whole.scores, part.scores, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FIRST)
def test_order_of_rollouts_only_reorders(name):
    groups, order = random_groups(), torch.randperm(6)
    moved = apply(name, Groups(groups.rewards[:, order], {k: v[:, order] for k, v in groups.inputs.items()}))
    torch.testing.assert_close(moved.advantages, apply(name, groups).advantages[:, order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FIRST)
def test_groups_without_information_have_weight_one_or_no_advantage(name):
    rewards = torch.tensor([[0.3] * 8, [NAN] * 8, [1.0] + [NAN] * 7, [0.35] + [0.6] * 7])
    embeddings = torch.randn(4, 8, 3)
    clusters = torch.arange(8).expand(4, 8)
    options = {"mean_one": True} if name in WEIGHING else {}
    outcome = apply(name, Groups(rewards, {"embeddings": embeddings, "clusters": clusters}), **options)
    assert (outcome.advantages[:3] == 0).all() and (outcome.advantages[3] != 0).all()
    assert (outcome.weights[1:3] == 1).all()
    assert outcome.advantages[3].abs().max() < 3.5


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("shape", [(0, 4), (3, 1), (1, 2)])
def test_small_shapes(name, shape):
    inputs = {"embeddings": torch.randn(*shape, 3), "clusters": torch.zeros(shape, dtype=torch.int64)}
    outcome = apply(name, Groups(torch.randn(shape), inputs))
    assert outcome.advantages.shape == outcome.weights.shape == shape
    assert all(score.shape == shape[:1] for score in outcome.scores.values())
    if shape[1] == 1:
        assert (outcome.advantages == 0).all() and (outcome.weights == 1).all()


@pytest.mark.parametrize("name", WEIGHING)
def test_mean_one_removes_the_mean_weight(name):
    groups = random_groups(40, 4, nan=0.5)
    assert {0, 1, 2, 3} <= set(groups.where.sum(1).tolist())
    plain, scaled = apply(name, groups), apply(name, groups, mean_one=True)
    counted = groups.where & (groups.where.sum(1) >= 2)[:, None]
    assert plain.weights[counted].mean().item() != pytest.approx(1.0, abs=1e-3)
    assert scaled.weights[counted].mean().item() == pytest.approx(1.0, abs=1e-12)
    ratio = plain.weights[counted].mean()
    torch.testing.assert_close(scaled.advantages * ratio, plain.advantages, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FIRST)
def test_outcomes_are_detached_and_inputs_unchanged(name):
    groups = random_groups(nan=0.0)
    rewards, embeddings = groups.rewards.clone().requires_grad_(), groups.inputs["embeddings"].clone().requires_grad_()
    inputs = {"rewards": rewards, "embeddings": embeddings, "clusters": groups.inputs["clusters"], "where": None}
    outcome = METHODS[name](**{k: inputs[k] for k in required_inputs(name)})  # gradients are on
    assert not outcome.advantages.requires_grad and not outcome.weights.requires_grad
    assert not any(score.requires_grad for score in outcome.scores.values())
    assert torch.equal(rewards, groups.rewards) and torch.equal(embeddings, groups.inputs["embeddings"])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 7), st.floats(0, 5), st.sampled_from(FIRST), st.booleans())
def test_finite_and_sign_kept_whatever_comes(seed, size, alpha, name, mean_one):
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0.0, 2.0, 0.3, 0.6, NAN, NAN, INF, -INF, 1e300, -5.0], dtype=torch.float64)
    rewards = values[torch.randint(len(values), (6, size), generator=generator)]
    embeddings = torch.randn(6, size, 3, generator=generator, dtype=torch.float64)
    embeddings[torch.rand(6, size, generator=generator) < 0.2] = 0.0
    embeddings[torch.rand(6, size, generator=generator) < 0.2] = NAN
    clusters = torch.randint(-1, 3, (6, size), generator=generator)
    groups = Groups(rewards, {"embeddings": embeddings, "clusters": clusters})
    outcome = apply(name, groups, **({"alpha": alpha, "mean_one": mean_one} if name in WEIGHING else {}))
    plain = apply("grpo", groups)
    for part in (outcome.advantages, outcome.weights, *outcome.scores.values()):
        assert torch.isfinite(part).all()
    assert (outcome.weights >= 0).all() and (outcome.advantages[~groups.where] == 0).all()
    assert (outcome.advantages * plain.advantages >= 0).all()


def test_ten_thousand_groups_in_one_call():
    groups = random_groups(10_000, 8, 8, torch.float32, nan=0.3)
    groups.rewards[::7] = 0.3
    outcome = apply("gcpo_bot", groups)
    assert torch.isfinite(outcome.advantages).all() and torch.isfinite(outcome.weights).all()
    assert (outcome.advantages[::7] == 0).all()


@pytest.mark.parametrize("name", WEIGHING)
@pytest.mark.parametrize("alpha", [-0.1, NAN, INF, None, "0.6"])
def test_alpha_out_of_range_is_refused(name, alpha):
    with pytest.raises(CalibrantError, match="alpha"):
        apply(name, groups_of_four(), alpha=alpha)


@pytest.mark.parametrize("name", WEIGHING)
def test_an_empty_reward_range_is_refused(name):
    with pytest.raises(CalibrantError, match="reward_range"):
        apply(name, groups_of_four(), reward_range=(1.0, 1.0))


def test_methods_show_shapes():
    with pytest.raises(
        CalibrantError, match=r"gcpo_cd: expected rewards \[N, G\] and embeddings \[N, G, D\].*\[2, 5, 3\]"
    ):
        gcpo_cd(torch.zeros(2, 4), torch.zeros(2, 5, 3), None)
    with pytest.raises(CalibrantError, match=r"gcpo_bot.*clusters \[2, 3\]"):
        gcpo_bot(torch.zeros(2, 4), torch.zeros(2, 4, 3), torch.zeros(2, 3).long(), None)
    with pytest.raises(CalibrantError, match=r"grpo.*\[N, G\].*\[8\]"):
        grpo(torch.zeros(8), None)


def test_inputs_and_hyperparameters_are_read_from_the_signature():
    assert required_inputs("grpo") == ("rewards", "where")
    assert required_inputs("gcpo_cd") == ("rewards", "embeddings", "where")
    assert required_inputs(gcpo_bot) == ("rewards", "embeddings", "clusters", "where")
    assert hyperparameters("grpo") == {}
    assert hyperparameters(gcpo_cd) == {"alpha": 0.6, "reward_range": (0.0, 2.0), "mean_one": False}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_name_a_summary_and_defaults(name):
    assert METHODS[name].__name__ == name
    assert resolve(name) is METHODS[name]
    assert 10 < len(summary(name)) <= 120 and summary(name).endswith(".")
    assert {"rewards", "where"} <= set(required_inputs(name))


def test_what_is_missing_or_unknown_is_named():
    with pytest.raises(CalibrantError, match=r"'gcpo_bot' needs the input 'embeddings', 'clusters'.*rewards, where"):
        apply("gcpo_bot", Groups(torch.zeros(1, 2)))
    with pytest.raises(CalibrantError, match="no hyper-parameter 'alhpa'; did you mean 'alpha'"):
        apply("gcpo_cd", groups_of_four(), alhpa=0.5)
    with pytest.raises(CalibrantError, match="'grpo' has no hyper-parameter 'alpha'; it takes none"):
        apply("grpo", groups_of_four(), alpha=0.5)


@pytest.mark.parametrize(
    "name, nearest",
    [("gcpo-bot", "gcpo_bot"), ("GCPO_CD", "gcpo_cd"), ("grp", "grpo"), ("rdonly", "rd_only")],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(CalibrantError, match=f"unknown method '{name}'; did you mean '{nearest}'"):
        resolve(name)


@pytest.mark.parametrize("nothing", ["", 3, None, ["grpo"]])
def test_what_is_no_name_is_refused(nothing):
    with pytest.raises(CalibrantError, match="unknown method"):
        resolve(nothing)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from calibrant.methods import Outcome, grpo\n"
        "import torch\n"
        "LEVEL = 3\n"
        "def half(rewards, where, *, factor=0.5):\n"
        "    out = grpo(rewards, where)\n"
        "    return Outcome(out.advantages * factor, out.weights * factor, {})\n"
        "def optional(rewards, where, clusters=None):\n"
        "    return Outcome(*grpo(rewards, where)[:2], {'seen': torch.full(rewards.shape[:1], clusters is not None)})\n"
        "def raw(rewards, where): return Outcome(rewards * 2, rewards * 0 + 1, {})\n"
        "def broken(rewards, where): return rewards\n"
        "def flat(rewards, where): return Outcome(rewards.flatten(), rewards, {})\n"
        "def endless(rewards, where): return Outcome(rewards / 0, rewards, {})\n"
        "def scored(rewards, where): return Outcome(rewards, rewards, {'rewards': rewards})\n"
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
        ("mine.hlaf", "'mine' has no 'hlaf'; did you mean 'half'"),
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
        resolve(path)


@pytest.mark.parametrize(
    "path, message",
    [
        ("mine.broken", "has to return an Outcome, got Tensor"),
        ("mine.flat", r"advantages \[N, G\].*\[4\]"),
        ("mine.endless", "advantages that are not finite"),
        ("mine.scored", r"score rewards \[N\].*\[1, 4\]"),
    ],
)
def test_a_result_that_is_no_outcome(user_module, path, message):
    with pytest.raises(CalibrantError, match=message):
        apply(path, groups_of_four())


def test_an_outcome_unpacks():
    advantages, weights, scores, base = Outcome(torch.zeros(1, 2), torch.ones(1, 2), {})
    assert advantages.shape == weights.shape and scores == {} and base == "standardised"
