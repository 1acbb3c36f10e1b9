"""Settings of training that a method is recommended with, as plain data; importing this module loads no torch."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from calibrant.methods.outcome import Method


class Setting(NamedTuple):
    """A value of an option of `calibrant train`, with its source and level: (a), (a*), (b) or (c)."""

    value: object
    source: str
    certainty: str
    inherent: bool = False  # without it, it would be another method


DR_GRPO_SCRIPT = "SEED-GRPO's own was not found; that of Dr. GRPO's script, whose data, batch and lengths it shares"

TWO_UPDATES = Setting(2, "with one update per batch every importance ratio is 1", "c", inherent=True)

RECOMMENDED: dict[str, dict[str, Setting]] = {
    "grpo": {},
    "dr_grpo": {
        "loss_type": Setting(
            "dr_grpo", "the loss that belongs to it: sum over tokens, constant length", "a", inherent=True
        )
    },
    "rloo": {},
    "rd_only": {},
    "gcpo_cd": {},
    "gcpo_bot": {},
    "grpo_se": {},
    "grpo_kle": {},
    "seed_grpo": {
        "loss_type": Setting("dr_grpo", "SEED-GRPO builds on Dr. GRPO: no division by length", "b"),
        "rollouts": Setting(8, "SEED-GRPO, experiments; 10 and 16 in the ablation", "b"),
        "cluster_text": Setting("answer", "SEED-GRPO: equal final answers form a cluster", "b", inherent=True),
        "learning_rate": Setting(1e-6, DR_GRPO_SCRIPT, "c"),
        "temperature": Setting(1.0, DR_GRPO_SCRIPT, "c"),
        "beta": Setting(0.0, DR_GRPO_SCRIPT, "c"),
    },
    "empo": {
        "cluster_text": Setting(
            "answer", "the authors' code: parsed answers are compared, not solutions", "a", inherent=True
        )
    },
    "grpo_care": {"beta": Setting(0.0, "the authors' code: the bonus takes the place of the KL term", "a")},
    "capo": {
        "beta": Setting(0.0, "CAPO's experiments: KL coefficient 0", "b"),
        "learning_rate": Setting(1e-6, "CAPO's experiments", "b"),
        "rollouts": Setting(8, "CAPO's experiments", "b"),
        "temperature": Setting(1.0, "CAPO's experiments", "b"),
        "loss_type": Setting("grpo", "mean over the tokens of each rollout, whose gradient is that of `l_i`", "c"),
    },
    "egpo": {},
    "edge_grpo": {},
    "q_hawkeye": {},
    "eg_spo": {},
    "r2vpo": {"num_iterations": TWO_UPDATES},
    "mgpo": {},
    "ha_dw": {"loss_type": Setting("grpo", "the authors' script: mean over the tokens of each rollout", "a")},
    "dgpo": {},
    "codapo": {},
    "clip_cov": {},
    "kl_cov": {"num_iterations": TWO_UPDATES},
    "gtpo": {},
    "gcpo_grad": {},
    "gradient_snr": {},
}
"""Method -> option -> setting; options that are not named stay those of GRPO."""


def recommended_values(method: "str | Method", *, inherent: bool = False) -> dict[str, object]:
    """Option -> value that a method is recommended with; of `inherent` ones, only those that make it what it is.

    A user's own function names them in its attribute `recommended`, e.g. `my_method.recommended = {"beta": 0.0}`.

    >>> recommended_values("dr_grpo")
    {'loss_type': 'dr_grpo'}
    """
    if isinstance(method, str) and method in RECOMMENDED:
        return {name: x.value for name, x in RECOMMENDED[method].items() if x.inherent or not inherent}
    from calibrant.errors import CalibrantError
    from calibrant.methods.calling import name_of, resolve_method
    from calibrant.methods.table import METHODS

    function = resolve_method(method)
    name = name_of(function)
    if METHODS.get(name) is function:
        return recommended_values(name, inherent=inherent)
    values = {} if inherent else getattr(function, "recommended", {})
    if not isinstance(values, dict) or not all(isinstance(option, str) for option in values):
        raise CalibrantError(f"method '{name}': its attribute 'recommended' has to be a dictionary {{option: value}}")
    return values
