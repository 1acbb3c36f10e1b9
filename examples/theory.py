"""The theory on real groups: answers of the embedded policy, their exact gradients, the bounds and the shrinkage.

    python examples/theory.py                # 8 questions, 64 answers each, about a minute on a processor

The derivations, and what the tables show, are in docs/theory.md.
"""

import argparse
from typing import Any, NamedTuple

import theory_bounds as theory
import torch
from torch import Tensor

from calibrant.advantages import standardised
from calibrant.demo import policy_path
from calibrant.gradients import gradient_variance
from calibrant.policy import logps_in_chunks
from calibrant.policy.generation import written
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.signals import barycentric_transport, gradient_snr_weight, head_gram_from_weight
from calibrant.tasks.places import TASK
from calibrant.text.embed import Embedder
from calibrant.text.inputs import by_key

SIZE, TEMPERATURE = 16, 0.9
COLUMNS = ("within", "between", "Gini", "entropy", "slack", "CD", "2 L2 BoT", "L2 BoT")


class Rollouts(NamedTuple):
    """Answers of N questions in groups of G."""

    batch: dict[str, Tensor]  # with TRL's names, [N * G, ...]
    answers: list[list[str]]
    rewards: Tensor  # [N, G]


def sample(model: Any, questions: int, size: int, seed: int) -> Rollouts:
    """Samples answers to questions about countries that the policy has never read of."""
    rows, tokenizer = TASK.load("test", questions, seed), load_tokenizer("demo")
    inputs = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True)
    prompt, mask = (inputs[name].repeat_interleave(size, 0) for name in ("input_ids", "attention_mask"))
    torch.manual_seed(seed)
    options = dict(
        do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0, max_new_tokens=TASK.max_completion_length
    )
    ids = model.generate(input_ids=prompt, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **options)
    ids = ids[:, prompt.shape[1] :]
    own = written(ids, tokenizer.eos_token_id)
    texts = [TASK.extract(text) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    answers = [texts[i : i + size] for i in range(0, len(texts), size)]
    rewards = [[TASK.reward(a, row["references"]) for a in group] for group, row in zip(answers, rows, strict=True)]
    batch = {"prompt_ids": prompt, "prompt_mask": mask, "completion_ids": ids, "completion_mask": own}
    return Rollouts(batch, answers, torch.tensor(rewards).double())


def of_all_parameters(model: Any, rollouts: Rollouts) -> Tensor:
    """`<g_i, g_j>` of the gradients of log-likelihoods, `[N, G, G]`."""
    gram = gradient_variance(model, rollouts.batch, rollouts.rewards, gram=True, temperature=TEMPERATURE).gram
    assert gram is not None
    return gram


def of_the_head(model: Any, rollouts: Rollouts) -> Tensor:
    """The same of the output head alone, as the trainer has it: a forward pass and no backward one."""
    batch, (n, size) = rollouts.batch, rollouts.rewards.shape
    with torch.no_grad():
        states = logps_in_chunks(model, **batch, rows_per_chunk=size, hidden_states=True).hidden_states
    assert states is not None
    groups = (x.view(n, size, *x.shape[1:]) for x in (states, batch["completion_ids"], batch["completion_mask"]))
    hidden, tokens, mask = groups
    return head_gram_from_weight(hidden, model.lm_head.weight, tokens, mask, temperature=TEMPERATURE)


def points(gram: Tensor) -> Tensor:
    """Points with these inner products: `[G, G]`, a few numbers for each gradient instead of millions."""
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0.0).sqrt()


class Modes(NamedTuple):
    """The clusters of a group."""

    share: Tensor  # [K]
    gradients: Tensor  # [K, G], mean gradients as points
    embeddings: Tensor  # [K, D]


def modes(updates: Tensor, embeddings: Tensor, clusters: Tensor) -> Modes:
    """Shares, mean gradients and mean embeddings of clusters `[G]`."""
    own = torch.stack([(clusters == k).double() for k in clusters.unique()])
    mean = own / own.sum(1, keepdim=True)
    return Modes(own.mean(1), mean @ updates, mean @ embeddings.double())


def bounds(updates: Tensor, embeddings: Tensor, clusters: Tensor) -> dict[str, float]:
    """Both sides of the inequalities of a group, in units of its whole gradient variance."""
    parts, found = theory.variance_decomposition(updates, clusters), modes(updates, embeddings, clusters)
    delta = theory.largest_disagreement(found.gradients)
    smooth = theory.lipschitz_squared(found.gradients, found.embeddings).item()
    papers = smooth * barycentric_transport(embeddings[None].double(), clusters[None])[0]
    values = {
        "within": parts.intra,
        "between": parts.inter,
        "Gini": theory.gini_bound(found.share, delta),
        "entropy": theory.entropy_bound(found.share, delta),
        "slack": theory.bound_slack(found.share, found.gradients),
        "CD": theory.dispersion_bound(found.share, found.embeddings, smooth),
        "2 L2 BoT": theory.transport_bound(found.share, found.embeddings, smooth),
        "L2 BoT": papers,
    }
    return {name: (x / parts.total).item() for name, x in values.items()}


def print_bounds(rollouts: Rollouts, gram: Tensor) -> None:
    """Lines for each group with a spread of rewards: clusters of equal answers, and of equal rewards."""
    by_answer = by_key(lambda text: TASK.key(text) or "(none)")(rollouts.answers)
    by_reward = torch.stack([group.unique(return_inverse=True)[1] for group in rollouts.rewards])
    advantages, embed = standardised(rollouts.rewards), Embedder()
    print("group  clusters     " + " ".join(f"{name:>8}" for name in COLUMNS))
    for n, answers in enumerate(rollouts.answers):
        for name, clusters in (("answers", by_answer[n]), ("rewards", by_reward[n])):
            if advantages[n].any():
                found = bounds(advantages[n, :, None] * points(gram[n]), embed(answers), clusters)
                numbers = " ".join(f"{found[column]:>8.2f}" for column in COLUMNS)
                print(f"{n:>5}  {len(clusters.unique()):>3} {name:<9}{numbers}")


def agreement(gram: Tensor, rewards: Tensor, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Of the update x of each part of `size` answers: `|x|^2`, and `<x, y>` with y that of the question's other parts.

    Args:
        gram: `[N, G, G]`, G a multiple of `size`.
        rewards: `[N, G]`.

    Returns:
        Both `[N, G / size]`. For a weight w, `w^2 |x|^2 - 2 w <x, y>` is the squared error `|w x - y|^2` but for
        `|y|^2`, which no weight changes; y is an estimate of the same gradient that knows nothing of w.
    """
    n, whole = rewards.shape
    advantages = standardised(rewards.view(-1, size)).view(n, whole)
    weighted = advantages[:, :, None] * gram * advantages[:, None, :]
    products = weighted.view(n, whole // size, size, whole // size, size).mean((2, 4))  # of the parts' updates
    own = products.diagonal(dim1=-2, dim2=-1)
    return own, (products.sum(-1) - own) / (whole // size - 1)


def shares(gram: Tensor, rewards: Tensor, size: int = SIZE) -> Tensor:
    """The weight of each part of `size` answers, `[N, G / size]`."""
    n, whole = rewards.shape
    parts = gram.view(n, whole // size, size, whole // size, size).diagonal(dim1=1, dim2=3).movedim(-1, 1)
    advantages = standardised(rewards.view(-1, size)).view(n, -1, size)
    return gradient_snr_weight(parts.flatten(0, 1), advantages.flatten(0, 1)).view(n, -1)


def print_shrinkage(every: Tensor, head: Tensor, rewards: Tensor) -> None:
    """How far updates are from those of other answers, with and without weights: 0 as far as no update at all."""
    own, others = agreement(every, rewards)
    exact, proxy = shares(every, rewards), shares(head, rewards)
    print("\nweights                            mean    error")
    for name, weigh in {
        "none (grpo)": torch.ones(1),
        "one for all, the best of them": (others.mean() / own.mean()).view(1),
        "gradient_snr, all parameters": exact,
        "gradient_snr, the head": proxy,
    }.items():
        print(f"{name:<33} {weigh.mean():.3f} {(weigh**2 * own - 2 * weigh * others).mean():>8.1f}")
    print(
        f"correlation of the last two       {torch.corrcoef(torch.stack([exact.flatten(), proxy.flatten()]))[0, 1]:.3f}"
    )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=8, help="of the test split (default: 8)")
    answers = f"to each question, a multiple of {SIZE}, at least {2 * SIZE} (default: {4 * SIZE})"
    parser.add_argument("--answers", type=int, default=4 * SIZE, help=answers)
    parser.add_argument("--seed", type=int, default=0, help="of questions and answers (default: 0)")
    options = parser.parse_args()
    model = load_policy(str(policy_path()))
    rollouts = sample(model, options.questions, options.answers, options.seed)
    every = of_all_parameters(model, rollouts)
    print_bounds(rollouts, every)
    print_shrinkage(every, of_the_head(model, rollouts), rollouts.rewards)


if __name__ == "__main__":
    main()
