"""Runs the tests of the trainer and of the policy with the oldest and the newest TRL and transformers that work.

    python scripts/test_versions.py                                      all pairs, tests/trl and tests/policy
    python scripts/test_versions.py oldest -- tests/trl/test_seams.py    one pair, arguments for pytest after --

Each pair has a virtual environment of its own under `.venv-versions/`; everything else is as in constraints.txt.
The ranges of trl and transformers in pyproject.toml are those of `PAIRS`.
"""

import re
import subprocess
import sys
from pathlib import Path

PAIRS = {
    "oldest": {"trl": "1.16.0", "transformers": "5.10.4"},
    "pinned": {"trl": "1.16.0", "transformers": "5.23.0"},
    "newest": {"trl": "1.16.0", "transformers": "5.24.0"},
}
"""verl asks for a transformers below 5.11."""

FREE = (*PAIRS["pinned"], "tokenizers")
"""Packages whose version the pair decides."""

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ".[offline,test,tensorboard]"
TESTS = ["tests/trl", "tests/policy"]


def main(arguments: list[str]) -> int:
    """Returns 0 when the tests pass with each pair that is named, 1 else."""
    names = arguments[: arguments.index("--")] if "--" in arguments else arguments
    tests = arguments[len(names) + 1 :] or TESTS
    if unknown := set(names) - set(PAIRS):
        sys.exit(f"test_versions: no pair {', '.join(sorted(unknown))}; there are {', '.join(PAIRS)}")
    passed = {name: _test(name, tests) for name in names or PAIRS}
    for name, good in passed.items():
        print(f"{name:<8}{_words(name)}: {'passed' if good else 'FAILED'}")
    return 0 if all(passed.values()) else 1


def _test(name: str, tests: list[str]) -> bool:
    python = _environment(name)
    print(f"== {name}: {_words(name)}", flush=True)
    return subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT).returncode == 0


def _environment(name: str) -> Path:
    """The interpreter of an environment with the pair, made when it is not there."""
    folder = ROOT / ".venv-versions" / name
    python, done = folder / "bin" / "python", folder / "installed"
    if done.exists() and done.read_text() == _words(name):
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if re.split("[=<>]", line)[0] not in FREE]
    (folder / "constraints.txt").write_text("\n".join(kept) + "\n")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-c",
        folder / "constraints.txt",
    ]
    pair = [f"{package}=={number}" for package, number in PAIRS[name].items()]
    subprocess.run([*install, next(line for line in kept if line.startswith("torch=="))], check=True)
    subprocess.run([*install, *pair, "-e", EXTRAS], check=True, cwd=ROOT)
    done.write_text(_words(name))
    return python


def _words(name: str) -> str:
    return ", ".join(f"{package} {number}" for package, number in PAIRS[name].items())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
