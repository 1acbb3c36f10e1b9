"""The exact gradient variance of one group, with a figure: which answers pull the update into the same direction.

    python examples/gradient_variance.py        # seconds on a CPU; writes gradient_variance.png

`V(q) = 1/G sum_i |A_i g_i - mean_j A_j g_j|^2` with `g_i` the gradient of the log-likelihood of answer i over all
parameters, from one forward and one backward pass.
"""

import argparse

import matplotlib.pyplot as plt
import torch

from calibrant.advantages import standardised
from calibrant.gradients import gradient_variance
from calibrant.policy.generation import Sampling, sample_group
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.tasks.places import TASK
from calibrant.text.inputs import by_key

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--question", type=int, default=2, help="number of the question in the test split")
parser.add_argument("--out", default="gradient_variance.png", help="file of the figure")
options = parser.parse_args()

# %% Sample a group of answers to one question
policy, tokenizer = load_policy("demo").eval(), load_tokenizer("demo")
row = TASK.load("test", options.question + 1, 0)[options.question]
group = sample_group(policy, tokenizer, row["prompt"], Sampling(samples=16, temperature=0.9, max_new_tokens=24))
tokens = group.tokens
answers = [TASK.extract(text) for text in tokenizer.batch_decode(tokens.completion_ids, skip_special_tokens=True)]
rewards = torch.tensor([[TASK.reward(answer, row["references"]) for answer in answers]])

# %% Advantages, clusters of equal answers, and the variance with its parts
advantages, clusters = standardised(rewards), by_key(TASK.key)([answers])
found = gradient_variance(policy, tokens._asdict(), advantages, clusters=clusters, gram=True, temperature=0.9)
print(f"question: {row['prompt'].splitlines()[-2]}")
print(f"V(q) = {found.variance.item():.3g}, within clusters {found.variance_intra.item():.3g}, "
      f"between clusters {found.variance_inter.item():.3g}")  # fmt: skip

# %% Cosines of the answers' gradients, answers of one cluster beside each other
order = clusters[0].argsort(stable=True)
gram = found.gram[0][order][:, order].float()
norms = gram.diagonal().clamp(min=1e-12).sqrt()
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), width_ratios=(3, 1), sharey=True, layout="constrained")
image = left.imshow(gram / norms[:, None] / norms, vmin=-1, vmax=1, cmap="RdBu_r")
left.set_yticks(range(len(order)), [answers[i][:28] for i in order.tolist()])
left.set_xticks([])
left.set_title("cosine of the gradients of two answers")
right.barh(range(len(order)), advantages[0][order], color="#4269d0")
right.set_title("advantage")
figure.colorbar(image, ax=left, shrink=0.8)
figure.savefig(options.out, dpi=120)
print(f"written: {options.out}")
