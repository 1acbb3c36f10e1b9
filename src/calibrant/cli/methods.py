"""List the methods, one line each: name, what it needs, what it does."""

import argparse

EXAMPLES = """example:
  calibrant methods
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(options: argparse.Namespace) -> int:
    """Prints the table."""
    from calibrant.methods import METHODS, required_inputs, summary

    needs = {name: ", ".join(i for i in required_inputs(m) if i != "where") for name, m in METHODS.items()}
    width = max(map(len, needs.values()))
    for name, method in METHODS.items():
        print(f"{name:<12}  {needs[name]:<{width}}  {summary(method)}")
    return 0
