import pytest
import torch

from calibrant.errors import CalibrantError
from calibrant.methods import METHODS, Outcome
from calibrant.scorer import Scorer, batch_statistics, dry_run
from calibrant.text.inputs import Readers, by_key


def letters(texts):
    """A stand-in for an embedder: one axis a distinct text."""
    axes = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return torch.eye(8)[[axes[text] for text in texts]]


REWARDS = torch.tensor([[2.0, 0.0], [1.0, float("nan")]])
COMPLETIONS = [" Paris\nmore", "Rome", "", "Rome"]
ANSWERS = ["Paris", "Rome", "", "Rome"]


def test_only_what_a_method_names_is_computed():
    def fail(_texts):
        pytest.fail("nobody asked for embeddings")

    scored = Scorer(METHODS["rd_only"], readers=Readers(embed=fail))(COMPLETIONS, REWARDS, answers=ANSWERS)
    assert scored.answers == ANSWERS
    assert scored.groups.inputs == {}


@pytest.mark.parametrize(("meaning", "seen"), [("answer", ["Paris", "Rome"]), ("completion", [" Paris\nmore", "Rome"])])
def test_the_text_with_the_meaning_is_embedded_and_clustered(meaning, seen):
    embedded, keyed = [], []
    scorer = Scorer(
        METHODS["gcpo_bot"],
        readers=Readers(
            embed=lambda texts: embedded.extend(texts) or letters(texts),
            cluster=by_key(lambda text: keyed.append(text) or text),
        ),
        meaning=meaning,
    )
    scored = scorer(COMPLETIONS, REWARDS, answers=ANSWERS)
    assert embedded[:2] == keyed[:2] == seen
    assert scored.groups.inputs["clusters"].tolist() == [[0, 1], [0, 1]]


def test_the_summary_names_every_statistic_by_its_scope():
    scored = Scorer(METHODS["rd_only"], {"alpha": 0.6})(COMPLETIONS, REWARDS, answers=ANSWERS)
    found = batch_statistics(scored, (0.0, 1.0))
    weight = 1 + 0.6 / 0.6931471805599453  # RD = 1 for rewards 2 and 0, alpha_G = 0.6 / ln 2
    assert found["group/weight/max"] == pytest.approx(weight, rel=1e-6)
    assert found["group/weight/min"] == 1.0
    assert found["group/weight/mean"] == pytest.approx((2 * weight + 1) / 3, rel=1e-6)  # over scorable rollouts
    assert found["group/uninformative"] == 0.5
    assert found["batch/unscorable"] == 1
    assert found["batch/reward_out_of_range"] == 1


def test_a_batch_without_anything_scorable_has_finite_statistics():
    scored = Scorer(METHODS["rd_only"])(["a", "b"], torch.full((1, 2), float("nan")), answers=["a", "b"])
    assert all(value == value for value in batch_statistics(scored, (0.0, 1.0)).values())


def needs_more(rewards, logprobs, where, *, alpha=0.1):
    """Wants what nothing supplies."""


def returns_nothing(rewards, where):
    """Forgot to return."""


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (needs_more, {}, "logprobs"),
        (METHODS["rd_only"], {"alpha": -1.0}, "alpha"),
        (METHODS["rd_only"], {"beta": 1.0}, "no hyper-parameter 'beta'"),
        (METHODS["gcpo_cd"], {"reward_range": (1.0, 1.0)}, "range"),
        (returns_nothing, {}, "has to return an Outcome"),
    ],
)
def test_a_rehearsal_finds_what_is_wrong(method, options, said):
    with pytest.raises(CalibrantError, match=said):
        dry_run(method, options)


def own(rewards, where, *, factor=2.0):
    """A method of one's own."""
    return Outcome(torch.full_like(rewards, factor), {})


def test_a_method_of_ones_own():
    scored = Scorer(own, {"factor": 3.0})(["a", "b"], torch.tensor([[1.0, 0.0]]), answers=["a", "b"])
    assert scored.outcome.weights.tolist() == [[3.0, 3.0]]
