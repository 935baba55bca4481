"""Which isolation is taken, and what is said when the host allows too little."""

import pytest

from srpo.errors import UserError
from srpo.sandbox import isolation


@pytest.fixture
def host(monkeypatch):
    """A host that refuses these."""
    tried = []

    def host(**refused):
        class Sandbox:
            def __init__(self, name):
                tried.append(name)
                if name in refused:
                    raise UserError(refused[name])

            def close(self):
                pass

        monkeypatch.setattr(isolation, "Sandbox", Sandbox)
        isolation.probe.cache_clear()
        return tried

    monkeypatch.setattr(isolation, "_unsafe", False)
    yield host
    isolation.probe.cache_clear()


def test_the_strongest_is_taken_and_tried_once(host, caplog):
    tried = host()
    assert [isolation.strongest(), isolation.strongest()] == ["namespaces"] * 2
    assert tried == ["namespaces"] and not caplog.records


def test_a_weaker_one_is_logged_with_its_reason(host, caplog):
    host(namespaces="unshare: Operation not permitted")
    assert isolation.strongest() == "landlock"
    assert "isolation 'landlock'" in caplog.text and "namespaces: unshare: Operation not permitted" in caplog.text


def test_too_little_is_refused_unless_allowed_by_name(host, caplog):
    host(namespaces="unshare", landlock="Landlock version 0")
    with pytest.raises(UserError, match="namespaces: unshare; landlock: Landlock version 0; .*"
                                        "set reward.allow_unsafe_sandbox: true"):
        isolation.strongest()
    isolation.allow_unsafe()
    assert isolation.strongest() == "unsafe"
    assert "isolation 'unsafe'" in caplog.text


def test_a_host_without_filters_is_refused_whatever_is_allowed(host):
    host(namespaces="a", landlock="b", unsafe="no system-call filter")
    isolation.allow_unsafe()
    with pytest.raises(UserError, match="cannot run here: .*unsafe: no system-call filter"):
        isolation.strongest()
