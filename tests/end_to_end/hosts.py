"""Hosts to launch on: network namespaces of this machine, joined by a cable of their own (a veth pair)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Impossible(Exception):
    """This machine gives no network namespaces; the message is its own."""


@dataclass(frozen=True)
class Host:
    namespace: str
    address: str
    interface: str

    @property
    def enter(self) -> tuple[str, ...]:
        """What a command is started through to run on this host."""
        return ("ip", "netns", "exec", self.namespace)

    def link(self, state: str) -> None:
        """`down` cuts the host off: nothing arrives any more, and nobody is told."""
        _ip("-n", self.namespace, "link", "set", self.interface, state)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Raises Impossible."""
    number = os.getpid() % 2**16
    net = f"10.{77 + number % 100}.{number % 256}"
    hosts = tuple(Host(f"srpo-{name}-{number}", f"{net}.{i}", f"v{name}{number}") for i, name in ((1, "a"), (2, "b")))
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip("link", "add", hosts[0].interface, "netns", hosts[0].namespace, "type", "veth", "peer", "name",
            hosts[1].interface, "netns", hosts[1].namespace)
        for host in hosts:
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                _ip("-n", host.namespace, "link", "set", interface, "up")
        yield hosts
    finally:
        for host in hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True)


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise Impossible("`ip` is not installed (package iproute2)") from None
    if done.returncode:
        raise Impossible(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
