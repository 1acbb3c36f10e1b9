"""The same numbers as lm-polygraph where both define the same thing, and named differences where they do not.

It pulls in a hundred packages, so it is not among the requirements of the tests; without it these are skipped. In an
environment of its own:

    python -m venv peers
    peers/bin/pip install -c constraints.txt -e ".[test]" lm-polygraph
    peers/bin/pytest tests/test_peers.py
"""

import math
from types import SimpleNamespace

import pytest
import torch
from builders_entail import save, some_groups

from calibrant.signals import kernel_language_entropy, semantic_entropy
from calibrant.signals.clusters import entailment_clusters, greedy_clusters
from calibrant.text.entail import EntailmentJudge

semantic = pytest.importorskip("lm_polygraph.estimators.semantic_entropy", exc_type=ImportError)
kernel = pytest.importorskip("lm_polygraph.estimators.kernel_language_entropy", exc_type=ImportError)
classes = pytest.importorskip("lm_polygraph.stat_calculators.semantic_classes", exc_type=ImportError)
matrices = pytest.importorskip("lm_polygraph.stat_calculators.semantic_matrix", exc_type=ImportError)

SIZES = [1, 2, 4, 10, 16]


def random_entailment(count, size, seed=0, sharpness=3.0):
    """Probabilities [N, G, G, 3] of all kinds, in float64."""
    logits = torch.randn(count, size, size, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (sharpness * logits).softmax(-1)


def statistics(entailment):
    """What lm-polygraph's estimators read; the texts only count."""
    entail = entailment[..., 2].numpy()
    return {
        "semantic_matrix_entail": entail,
        "semantic_matrix_contra": entailment[..., 0].numpy(),
        "semantic_matrix_classes": entailment.argmax(-1).numpy(),
        "entailment_id": 2,
        "sample_texts": [[str(i) for i in range(entail.shape[1])]] * len(entail),
    }


def their_classes(stats):
    return stats | classes.SemanticClassesCalculator()(stats, [], None)


def from_clusters(clusters):
    """Their statistics of given clusters."""
    entailment = torch.zeros(*clusters.shape, clusters.shape[1], 3, dtype=torch.float64)
    entailment[..., 1] = 0.5
    entailment[..., 2] = (clusters[:, :, None] == clusters[:, None, :]).double()
    return their_classes(statistics(entailment))


@pytest.mark.parametrize("size", SIZES)
def test_classes_are_the_strict_rule(size):
    p = random_entailment(100, size)
    of_group = their_classes(statistics(p))["semantic_classes_entail"]["sample_to_class"]
    expected = [[of_group[n][i] for i in range(size)] for n in range(100)]
    assert entailment_clusters(p, "strict").tolist() == expected
    assert size < 4 or len({max(ids) for ids in expected}) > 2


@pytest.mark.parametrize("size", SIZES)
def test_frequency_is_counted_semantic_entropy(size):
    clusters = torch.randint(0, 5, (100, size), generator=torch.Generator().manual_seed(size))
    peer = semantic.SemanticEntropy(class_probability_estimation="frequency")
    assert str(peer) == "SemanticEntropyEmpirical"
    expected = torch.from_numpy(peer(from_clusters(clusters)))
    torch.testing.assert_close(semantic_entropy(clusters).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("t", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("sharpness", [0.5, 10.0])
def test_heat_kernel_entropy(size, t, sharpness):
    p = random_entailment(30, size, seed=size, sharpness=sharpness)
    expected = torch.tensor(kernel.KernelLanguageEntropy(t=t, scale=False)(statistics(p)), dtype=torch.float64)
    assert expected.max() > 1e-3
    torch.testing.assert_close(kernel_language_entropy(p, t=t), expected, atol=1e-6, rtol=0)
    scaled = torch.tensor(kernel.KernelLanguageEntropy(t=t)(statistics(p)), dtype=torch.float64)
    torch.testing.assert_close(kernel_language_entropy(p, t=t) / math.log(size), scaled, atol=1e-6, rtol=0)


def test_direct_counts_a_class_once_for_each_of_its_members():
    """Ten samples in two equal classes: ln 2, at most ln 10. It sums over samples: 10 (1/2) ln 2, beyond ln 10."""
    clusters = torch.arange(10)[None] % 2
    peer = semantic.SemanticEntropy(class_probability_estimation="frequency", entropy_estimation="direct")
    assert peer(from_clusters(clusters))[0] == pytest.approx(3.4657, abs=1e-4)
    assert peer(from_clusters(clusters))[0] > math.log(10)
    assert semantic_entropy(clusters).item() == pytest.approx(0.6931, abs=1e-4)
    uneven = torch.tensor([[0, 0, 1, 2]])
    assert peer(from_clusters(uneven))[0] == pytest.approx(1.3863, abs=1e-4)
    assert semantic_entropy(uneven).item() == pytest.approx(1.0397, abs=1e-4)


def test_sum_is_not_normalised_over_the_samples():
    """Two samples of log-likelihood -10, two classes: it gives 10 nats; the shares are 1/2 each, ln 2 nats."""
    clusters = torch.tensor([[0, 1]])
    stats = from_clusters(clusters) | {"sample_log_probs": [[-10.0, -10.0]]}
    assert semantic.SemanticEntropy()(stats)[0] == pytest.approx(10.0)
    assert semantic_entropy(clusters, torch.tensor([[-10.0, -10.0]])).item() == pytest.approx(0.6931, abs=1e-4)


def test_one_sample_has_no_entropy_but_theirs_is_not_finite():
    """It divides by ln 1 = 0."""
    p = random_entailment(1, 1)
    with pytest.warns(RuntimeWarning):
        assert not math.isfinite(kernel.KernelLanguageEntropy()(statistics(p))[0])
    assert kernel_language_entropy(p).tolist() == [0.0]


def test_the_same_network_gives_the_same_matrix_and_classes(tmp_path):
    """Theirs judges a text against itself as well, so that a text may fail to entail itself; ours does not ask."""
    labels = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    judge = EntailmentJudge(save(tmp_path, labels), device="cpu")
    judge.model.config.label2id = {name: index for index, name in labels.items()}
    groups = [[text if text.strip() else "nothing" for text in group] for group in some_groups(30, 8)]
    network = SimpleNamespace(
        deberta=judge.model, deberta_tokenizer=judge.tokenizer, batch_size=16, device=torch.device("cpu")
    )
    theirs = matrices.SemanticMatrixCalculator(network)({"sample_texts": groups}, [], None)
    ours = judge.matrix(groups)
    equal = torch.tensor([[[a == b for b in group] for a in group] for group in groups])
    for name, label in [("semantic_matrix_entail", 2), ("semantic_matrix_contra", 0)]:
        peer = torch.from_numpy(theirs[name])
        torch.testing.assert_close(ours[..., label][~equal], peer[~equal], atol=1e-5, rtol=0)
        peer[equal] = float(label == 2)
        torch.testing.assert_close(ours[..., label], peer, atol=1e-5, rtol=0)
        assert label != 2 or torch.equal(greedy_clusters(peer), judge.clusters(groups))
    assert (torch.from_numpy(theirs["semantic_matrix_classes"])[equal] != 2).any()
