"""Where in a model the gradient variance lies, and how well the variance of a part ranks groups by that of the whole.

    calibrant analyze --queries 500 --out runs/places-before
    python benchmarks/depth.py before=runs/places-before --groups 100

Each argument is NAME=DIRECTORY of an analysis; the policy that it names answers for the gradients. For the first
groups with reward spread the variance V(q) of all parameters is compared with that of the output head, of the embedding
(with the head, where both share a weight) and of each block. A table, and one JSON line with --out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from calibrant.advantages import standardised
from calibrant.analyze.groups import given_group, groups_of_file
from calibrant.files import read_json_lines, read_yaml
from calibrant.gradients import gradient_variance
from calibrant.policy.models import load_policy, load_tokenizer
from calibrant.report.formats import rho_text
from calibrant.statistics import paired_bootstrap


def parts(model: nn.Module) -> dict[str, list[str]]:
    """Name -> patterns of parameters: the embedding and each block, from the input on."""
    blocks = int(model.config.num_hidden_layers)
    named = {f"block {i + 1}": [f"*.layers.{i}.*"] for i in range(blocks)}
    return {"embedding": ["*embed_tokens.weight"], **named}


def variances(directory: Path, count: int) -> dict[str, Tensor]:
    """V(q) of every part, `[groups]` each; that of all parameters under "all"."""
    settings = read_yaml(directory / "config.yaml")["settings"]
    model, tokenizer = load_policy(settings["model"]), load_tokenizer(settings["model"])
    frames = {str(rows["prompt_id"].iloc[0]): rows for rows in groups_of_file(str(directory / "rollouts.jsonl"))}
    lines = [line for line in read_json_lines(directory / "groups.jsonl") if line["outcome"] == "informative"][:count]
    named = parts(model)
    found: dict[str, list[float]] = {"all": [], "head": [], **{name: [] for name in named}}
    for line in tqdm(lines, unit="group"):
        group = given_group(frames[line["prompt_id"]], tokenizer, settings["max_prompt_length"], model.device)
        rewards = torch.tensor([[row["reward"] for row in group.rows]], dtype=torch.float64)
        found["all"].append(line["truth"]["gradient_variance"])
        found["head"].append(line["signals"]["head_gradient_variance"])
        for name, patterns in named.items():
            of_part = gradient_variance(
                model,
                group.tokens._asdict(),
                standardised(rewards),
                parameters=patterns,
                temperature=settings["temperature"],
            )
            found[name].append(of_part.variance.item())
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def rows_of(found: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """For each part its median share of V(q), and its rank correlation with it and a 95% bootstrap interval."""
    whole = found["all"]
    names = [name for name in found if name != "all"]
    ranks = paired_bootstrap(torch.stack([found[name] for name in names]), whole)
    return {
        name: {
            "share": float((found[name] / whole).median()),
            "rho": float(ranks.value[i]),
            "low": float(ranks.low[i]),
            "high": float(ranks.high[i]),
        }
        for i, name in enumerate(names)
    }


def markdown(tables: dict[str, dict[str, dict[str, float]]]) -> str:
    """A row for each part, a column for each analysis."""
    names = list(dict.fromkeys(name for table in tables.values() for name in table))
    lines = [f"| part | {' | '.join(tables)} |", "|---|" + "---|" * len(tables)]
    for name in names:
        cells = (_cell(table.get(name)) for table in tables.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, float] | None) -> str:
    return "" if row is None else f"{row['share']:.0%}; {rho_text(row)}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("analyses", nargs="+", metavar="NAME=DIRECTORY", help="a column and its analysis")
    parser.add_argument("--groups", type=int, default=100, help="of each analysis (default: 100)")
    parser.add_argument("--out", type=Path, help="a file for the numbers as JSON, too")
    options = parser.parse_args()
    tables: dict[str, Any] = {}
    for each in options.analyses:
        name, directory = each.split("=", 1)
        tables[name] = rows_of(variances(Path(directory), options.groups))
    print(markdown(tables))
    if options.out:
        options.out.write_text(json.dumps({"benchmark": "depth", "groups": options.groups, **tables}) + "\n")


if __name__ == "__main__":
    main()
