"""List the methods: paper, what they need, what a weight belongs to, how strong they are, how sure we are.

With a name, all there is to know of that method; the dotted path of your own function works too.
"""

import argparse
from pathlib import Path

EXAMPLES = """examples:
  calibrant methods
  calibrant methods capo
  calibrant methods --pages docs/methods
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("method", nargs="?", metavar="METHOD", help="a name, or the dotted path of your own function")
    parser.add_argument("--pages", metavar="DIR", help="write a page a method, in Markdown, into this folder")


def run(options: argparse.Namespace) -> int:
    """Prints the table or a page, or writes pages."""
    import sys

    from calibrant.methods.pages import page, write

    sys.path.insert(0, str(Path.cwd()))
    if options.pages:
        written = write(Path(options.pages))
        print(f"written: {len(written)} pages in {options.pages}")
    elif options.method:
        print(page(options.method, options.method))
    else:
        print_table()
    return 0


def print_table() -> None:
    """Prints a block a method: facts on the first lines, then what it does."""
    from shutil import get_terminal_size
    from textwrap import TextWrapper, fill

    from calibrant.methods import METHODS
    from calibrant.methods.card import card
    from calibrant.methods.pages import LEVELS

    width, column = min(get_terminal_size((120, 24)).columns, 120), max(map(len, METHODS)) + 2
    wrap = TextWrapper(width, initial_indent=" " * column, subsequent_indent=" " * column).fill
    for name, method in METHODS.items():
        about = card(method)
        facts = f"{about.paper} | needs {', '.join(about.needs)} | a {about.per} | {about.effect} | {about.certainty}"
        print(f"{name:<{column}}" + wrap(about.summary).lstrip())
        print(wrap(facts))
    print(f"\n{fill(LEVELS, width)}\n\nMore of one: calibrant methods NAME")
