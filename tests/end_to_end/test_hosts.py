"""Two hosts, really apart: each has a network of its own, and one is lost in the middle of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hosts import Host, Impossible, two_hosts
from launches import Launch, metrics, same, survivors
from world import World

PORT = 29400


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as hosts:
            yield hosts
    except Impossible as e:
        pytest.skip(f"no network namespaces here: {e}")


def start(world: World, run: str, host: Host, meeting: Host, ranks: int) -> Launch:
    """launch/torchrun.sh on one of two hosts."""
    env = {"NNODES": "2", "RDZV_ENDPOINT": f"{meeting.address}:{PORT}", "RDZV_ID": run, "LOCAL_ADDR": host.address,
           "GLOO_SOCKET_IFNAME": host.interface, "MAX_RESTARTS": "5"}
    return world.launch(run, ranks=ranks, before=host.enter, env=env, parallel={"timeout": 0.25})


def lose_a_host_and_go_on(world: World, run: str, hosts: tuple[Host, Host], ranks: int, cut: bool) -> tuple[str, str]:
    """Train until a host is lost: cut off, when its network comes back later, or all its processes killed, when it is
    started again as a scheduler would do it. Returns what the two printed in the end."""
    a, b = hosts
    folder = world.folder / run
    stays, lost = start(world, run, a, a, ranks), start(world, run, b, a, ranks)
    stays.when(lambda: any(m["step"] >= 4 for m in metrics(folder)))
    if cut:
        b.link("down")
        stays.when(lambda: re.search("host or its network is down", stays.output))
        lost.when(lambda: re.search("is cut off, or that one is gone", lost.output))
        b.link("up")
        back = lost
    else:
        gone = lost.everyone()
        for process in gone:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        lost.process.wait()
        assert survivors(gone) == []
        back = start(world, run, b, a, ranks)
    return stays.succeed(), back.succeed()


@pytest.mark.slow
def test_a_host_is_killed_and_comes_back(base: Path, world: World, hosts: tuple[Host, Host]) -> None:
    """One rank a host: the base run had both on one."""
    outputs = lose_a_host_and_go_on(world, "host-killed", hosts, ranks=1, cut=False)
    assert re.search(r"resuming \S+ after step \d+", "".join(outputs))
    same(world.folder / "host-killed", base)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cut", [False, True], ids=["killed", "cut off"])
def test_two_hosts_of_two_ranks(world: World, hosts: tuple[Host, Host], cut: bool) -> None:
    undisturbed = world.folder / "four"
    if not undisturbed.exists():
        world.train("four", ranks=4).succeed()
    run = f"two-hosts-{cut}"
    stayed, lost = lose_a_host_and_go_on(world, run, hosts, ranks=2, cut=cut)
    assert re.search(r"resuming \S+ after step \d+", stayed + lost)
    if cut:
        assert re.search(r"error.*: nothing was heard of host \S+ \(ranks 2, 3\) for 10 s: the host or its network is "
                         "down; stacks of all ranks: ", stayed)
        assert re.search(r"error.*: the launch's store at \S+ has not answered for 10 s: either this host \(\S+\) is "
                         "cut off, or that one is gone", lost)
    same(world.folder / run, undisturbed)
