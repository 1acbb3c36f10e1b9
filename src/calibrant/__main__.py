"""`python -m calibrant`, as `accelerate launch -m calibrant train` needs it."""

import sys

from calibrant.cli.main import main

sys.exit(main())
