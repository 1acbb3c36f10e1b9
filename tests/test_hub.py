import socket

import pytest
from huggingface_hub import constants

from calibrant import hub


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.reachable.cache_clear()
    yield
    hub.reachable.cache_clear()


def test_a_hub_that_answers(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.reachable()
        assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert not hub.reachable()
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(socket, "create_connection", lambda *_a, **_k: pytest.fail("asked again"))
    assert not hub.reachable()


def test_a_proxy_is_trusted(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setattr(socket, "create_connection", lambda *_a, **_k: pytest.fail("asked past the proxy"))
    assert hub.reachable()
