"""Names the data-parallel replica that the others keep waiting for.

All ranks end a step together, so wall time shows nothing: what is compared is each replica's own time in a phase, which
leaves out the time that it waited for others (comm.waiting). The ranks of one replica work in lockstep and are as slow
as the slowest of them: a replica is named by its first rank, and one replica alone cannot be compared.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from statistics import median

import torch.distributed as dist

from srpo.comm import all_gather

log = logging.getLogger(__name__)

SHARE = 0.1
"""Of a step's own time: what a replica must cost the others before it counts as slow."""
STEPS = 5
"""Steps in a row in which the same replica was slow, after which the log says so."""


class Stragglers:
    """One a process. `ranks`: of a replica, adjacent."""

    def __init__(self, ranks: int) -> None:
        self._ranks, self._speaks = ranks, dist.get_rank() == 0
        self._slow: list[int] = []

    def observe(self, own: Mapping[str, float]) -> dict[str, float]:
        """This step's metrics: time/slowest_rank, and time/slowest_ratio, its own time in the phase in which it cost
        the others most over their median. `own`: seconds of each phase without waiting. Collective."""
        every = all_gather((socket.gethostname(), dict(own)))
        found = slowest([times for _, times in every], self._ranks)
        if found is None:
            return {}
        rank, phase, seconds, usual = found
        step = median(sum(times.values()) for _, times in every)
        self._slow = [*self._slow, rank if seconds - usual > SHARE * step else -1][-STEPS:]
        if self._slow == [rank] * STEPS:
            self._slow = []
            if self._speaks:
                log.warning("rank %d (%s) has been the slowest for %d steps: %s took it %.1f s, the others %.1f s",
                            rank, every[rank][0], STEPS, phase, seconds, usual)
        return {"time/slowest_rank": rank, "time/slowest_ratio": seconds / usual if usual else 1.0}


def slowest(times: list[dict[str, float]], ranks: int) -> tuple[int, str, float, float] | None:
    """(first rank, phase, its seconds, median of the others) where a replica took longest beyond the others; None with
    one replica. `times`: of every rank."""
    replicas = [times[i : i + ranks] for i in range(0, len(times), ranks)]
    if len(replicas) == 1:
        return None
    found = []
    for phase in times[0]:
        seconds = [max(rank[phase] for rank in replica) for replica in replicas]
        worst = max(range(len(seconds)), key=seconds.__getitem__)
        usual = median(seconds[:worst] + seconds[worst + 1 :])
        found.append((worst * ranks, phase, seconds[worst], usual))
    return max(found, key=lambda f: f[2] - f[3])
