"""Runs the tests of the trainers for verl, with verl on CPUs, in an environment of their own.

    python scripts/test_verl.py                                     all of tests/verl
    python scripts/test_verl.py -k two_workers                      arguments for pytest
    CALIBRANT_VERL_ENV=FOLDER python scripts/test_verl.py           an environment that exists, used as it is

The environment, `.venv-verl/`, takes 3 GB and about five minutes to install: verl asks for a transformers below 5.11.
What verl does not ask for is as in constraints.txt.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

VERSIONS = {
    "verl": "0.9.1",
    "ray": "2.60.0",
    "tensordict": "0.10.0",
    "TransferQueue": "0.1.11",
    "transformers": "5.10.4",
}
FREE = (*VERSIONS, "tokenizers")
"""Packages whose version verl decides."""

ROOT = Path(__file__).resolve().parent.parent
TESTS = ["tests/verl"]
OPTIONS = ["-o", "addopts=--strict-markers --import-mode=importlib -ra", "-o", "pythonpath="]


def main(arguments: list[str]) -> int:
    """Returns the status of pytest."""
    tests = [] if any(Path(x.partition("::")[0]).exists() for x in arguments) else TESTS
    return subprocess.run([environment(), "-m", "pytest", "-q", *OPTIONS, *tests, *arguments], cwd=ROOT).returncode


def environment() -> Path:
    """The interpreter of the environment, made where it is not there."""
    folder = Path(os.environ.get("CALIBRANT_VERL_ENV") or ROOT / ".venv-verl")
    python, done, words = folder / "bin" / "python", folder / "installed", str(VERSIONS)
    if "CALIBRANT_VERL_ENV" in os.environ or (done.exists() and done.read_text() == words):
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if re.split("[=<>]", line)[0] not in FREE]
    pins = [f"{name}=={number}" for name, number in VERSIONS.items()]
    (folder / "constraints.txt").write_text("\n".join([*kept, *pins]) + "\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "-c", folder / "constraints.txt"]
    subprocess.run([*install, next(line for line in kept if line.startswith("torch=="))], check=True)
    subprocess.run([*install, "-e", ".[offline,verl]", "pytest>=8", "hypothesis>=6.100"], check=True, cwd=ROOT)
    done.write_text(words)
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
