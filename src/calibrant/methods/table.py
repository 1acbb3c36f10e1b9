"""The table of methods."""

from calibrant.methods.capo import capo
from calibrant.methods.consensus import empo, grpo_care
from calibrant.methods.difficulty import codapo, dgpo, ha_dw, mgpo
from calibrant.methods.egpo import egpo
from calibrant.methods.gcpo import gcpo_bot, gcpo_cd, gcpo_grad, rd_only
from calibrant.methods.outcome import Method
from calibrant.methods.plain import dr_grpo, grpo, rloo
from calibrant.methods.semantic import grpo_kle, grpo_se, seed_grpo
from calibrant.methods.token_level import clip_cov, gtpo, kl_cov
from calibrant.methods.tokens import edge_grpo, eg_spo
from calibrant.methods.variance import gradient_snr, q_hawkeye, r2vpo

METHODS: dict[str, Method] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "rd_only": rd_only,
    "gcpo_cd": gcpo_cd,
    "gcpo_bot": gcpo_bot,
    "grpo_se": grpo_se,
    "grpo_kle": grpo_kle,
    "seed_grpo": seed_grpo,
    "empo": empo,
    "grpo_care": grpo_care,
    "capo": capo,
    "egpo": egpo,
    "edge_grpo": edge_grpo,
    "q_hawkeye": q_hawkeye,
    "eg_spo": eg_spo,
    "r2vpo": r2vpo,
    "mgpo": mgpo,
    "ha_dw": ha_dw,
    "dgpo": dgpo,
    "codapo": codapo,
    "clip_cov": clip_cov,
    "kl_cov": kl_cov,
    "gtpo": gtpo,
    "gcpo_grad": gcpo_grad,
    "gradient_snr": gradient_snr,
}
"""Name -> method."""
