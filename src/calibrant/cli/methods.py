"""List the methods: paper, inputs, what a weight applies to, range of the weights, level of certainty.

With a name, the page of that method: formula, hyper-parameters, recommended settings. The dotted path of your own
function works the same way.
"""

import argparse
from pathlib import Path
from shutil import get_terminal_size
from textwrap import TextWrapper, fill

EXAMPLES = """examples:
  calibrant methods
  calibrant methods capo
  calibrant methods --pages docs/methods
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the optional method."""
    parser.add_argument("method", nargs="?", metavar="METHOD", help="name, or dotted path of a function")
    parser.add_argument("--pages", metavar="DIR", help="folder for one Markdown page per method")


def run(options: argparse.Namespace) -> int:
    """Prints the table of methods, or the page of one."""
    from calibrant.methods.pages import page, write_pages

    if options.pages:
        print(f"written: {len(write_pages(Path(options.pages)))} pages in {options.pages}")
    elif options.method:
        print(page(options.method, options.method))
    else:
        print_methods()
    return 0


def print_methods() -> None:
    """Prints one block per method: what it does, then paper, inputs, effect and level of certainty."""
    from calibrant.methods import METHODS
    from calibrant.methods.pages import LEVELS, card

    width, column = min(get_terminal_size((120, 24)).columns, 120), max(map(len, METHODS)) + 2
    wrap = TextWrapper(width, initial_indent=" " * column, subsequent_indent=" " * column).fill
    for name, method in METHODS.items():
        about = card(method)
        facts = f"{about.paper} | needs {', '.join(about.needs)} | per {about.per} | {about.effect} | {about.certainty}"
        print(f"{name:<{column}}" + wrap(about.summary).lstrip())
        print(wrap(facts))
    columns = (
        "Columns: paper | inputs | what one weight belongs to | effect at the defaults, where x [low, high] multiplies "
        "the advantage by a number in that range | level of certainty."
    )
    for legend in (columns, LEVELS):
        print("\n" + fill(legend, width))
    print("\nPage of one method: calibrant methods NAME")
