"""The model hub, or the lack of one: asked once, for a few seconds, not retried for minutes."""

import os
import socket
from functools import cache
from urllib.parse import urlsplit

from huggingface_hub import constants

SECONDS = 3.0


@cache
def reachable() -> bool:
    """Whether the hub answers; where it does not, the hub's library is told to use its cache alone.

    Behind a proxy that is not asked, and the answer is yes.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
        return False
    return True
