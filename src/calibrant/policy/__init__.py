"""The language model: log-probabilities and generation, with each distinct prompt computed once for its rollouts.

What holds in every module of this package:

* `model` is a causal language model of transformers, inside wrappers (data parallelism, compilation, PEFT) or not.
* B rows: `prompt_ids` and `prompt_mask` `[B, P]` are padded on the left, `completion_ids` and `completion_mask`
  `[B, T]` on the right. Masks hold 0 and 1, as integers or booleans; a completion may be empty.
* Logits are divided by `temperature`. Log-probabilities and entropies are in nats, in at least float32, and 0 where
  the completion mask is 0. `hidden_states [B, T, D]`, in the type of the model, are what the output head reads; the
  state at t predicts token t.
* `prefix_index [B]`, integers, says which prompt each row has; prompts are compared where it is None.
* Sources: (a) read in the authors' code, (a*) in code of others, (b) in the paper, (c) an interpretation.
* The plain path computes every row with its own prompt, as TRL and `generate` do.
"""

from calibrant.policy.check import PrefixCheck, RouteCheck, check_prefix
from calibrant.policy.logps import SharedPrefix, logps_in_chunks, plain_logps, reads_head, shared_prefix_logps
from calibrant.policy.prompts import group_chunks
from calibrant.policy.routes import obstacles

__all__ = [
    "PrefixCheck",
    "RouteCheck",
    "SharedPrefix",
    "check_prefix",
    "group_chunks",
    "logps_in_chunks",
    "obstacles",
    "plain_logps",
    "reads_head",
    "shared_prefix_logps",
]
