"""What a model card says about calibrant: the method, its hyper-parameters and the papers to cite."""

import re
from collections.abc import Mapping

from transformers import PreTrainedModel
from trl.trainer.utils import get_config_model_id

from calibrant.files import versions
from calibrant.methods import Method, hyperparameters
from calibrant.methods.calling import name_of
from calibrant.methods.pages import UNKNOWN, card

FRAMEWORKS = "### Framework versions\n\n"
"""Heading of TRL's card; the section about calibrant stands before it."""
GCPO = (
    "Zhang, Shi, Bao, Wang, Ma and Ye: Why Semantic Entropy Fails: Geometry-Aware and Calibrated Uncertainty for "
    "Policy Optimization (GCPO), arXiv:2605.21801"
)


def policy_name(model: PreTrainedModel | str) -> str:
    """The last part of a model's name or folder, as TRL names an output folder after it."""
    name = model if isinstance(model, str) else get_config_model_id(model.config)
    return str(name).rstrip("/").split("/")[-1]


def with_method(text: str, method: Method, options: Mapping[str, object]) -> str:
    """TRL's model card with a section about the method and its options, and calibrant's version."""
    before, heading, after = text.partition(FRAMEWORKS)
    version = f"- calibrant: {versions()['calibrant']}\n" if heading else ""
    return f"{before if heading else text + chr(10)}{_section(method, options)}\n{heading}{version}{after}"


def _section(method: Method, options: Mapping[str, object]) -> str:
    about, values = card(method), hyperparameters(method) | dict(options)
    rows = [f"| {_code(name)} | {_code(repr(value))} |" for name, value in values.items()]
    papers = [] if about.paper == UNKNOWN else [f"- {_linked(_text(about.paper))}"]
    papers += [f"- {_linked(GCPO)}"] if "GCPO" in about.paper else []
    lines = [
        "### Calibrated updates\n",
        f"Advantages were weighted by the method {_code(name_of(method))} of calibrant. "
        f"{'' if about.summary == UNKNOWN else _text(about.summary)}\n",
        *(["| hyper-parameter | value |", "|---|---|", *rows, ""] if rows else []),
        *(["Please cite calibrant, and for the method:\n", *papers, ""] if papers else ["Please cite calibrant.\n"]),
    ]
    return "\n".join(lines)


def _linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://huggingface.co/papers/\1)", text)


def _text(text: str) -> str:
    """One line of prose whose characters mean nothing to Markdown or HTML."""
    return re.sub(r"[^\w\s.,:;()'=+/%-]|_", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def _code(text: str) -> str:
    """One line of code, in a cell of a table or outside."""
    return "`" + " ".join(text.split()).replace("`", "'").replace("|", "\\|") + "`"
