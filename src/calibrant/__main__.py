"""`python -m calibrant`, as `accelerate launch -m calibrant train` needs it."""

import sys

from calibrant.cli.main import main

if __name__ == "__main__":  # processes that are spawned (by vLLM) import this module
    sys.exit(main())
