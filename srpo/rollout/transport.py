"""Carries out a reshard plan between this rank's tensors and the other ranks', on NCCL and gloo.

Everything travels point to point, in rounds that all ranks go through in the same order, so that none can wait for
another in a circle. Two rounds are under way at a time: while one is on the wire, what the former brought is put into
its place. Within a rank's parameter a block of whole rows is contiguous and is sent and received in place; only a block
of columns goes through a buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from srpo.rollout.reshard import Plan
from srpo.rollout.shares import Part

Tensors = Mapping[str, Tensor]


class _Transfer(NamedTuple):
    peer: int
    view: Tensor
    arrives: bool


class _Flight(NamedTuple):
    """A round under way; `buffers` are received from the wire and belong at the views."""

    works: list[dist.Work]
    arrivals: list[tuple[Tensor, Tensor]]
    departures: list[Tensor]


class Transport:
    """This rank's part of a plan, to be run after every change of `source`, the trainer's parameters by their global
    names; `target` are vLLM's. No tensor's memory may move afterwards."""

    def __init__(self, plan: Plan, source: Tensors, target: Tensors) -> None:
        rank = dist.get_rank() - plan.first
        self.copies = [(_view(target, m.write), _view(source, m.read)) for m in plan.copies[rank]]
        self.padding = [_view(target, part) for part in plan.padding[rank]]
        # Also those in which this rank has nothing to do: what it passes on has landed two of the plan's rounds later.
        self.rounds = [[_Transfer(m.target + plan.first, _view(target if m.relayed else source, m.read), False)
                        if m.source == rank else _Transfer(m.source + plan.first, _view(target, m.write), True)
                        for m in moves if rank in (m.source, m.target)] for moves in plan.rounds]

    @torch.no_grad()
    def run(self) -> int:
        """Bring `target` up to date; every rank calls it. Returns the bytes that came from other ranks."""
        flights = [_launch(transfers) for transfers in self.rounds[:1]]
        for to, of in self.copies:
            to.copy_(of)
        for rows in self.padding:
            rows.zero_()
        received = 0
        for transfers in self.rounds[1:]:
            flights.append(_launch(transfers))
            received += _land(flights.pop(0))
        return received + sum(map(_land, flights))


def _view(tensors: Tensors, part: Part) -> Tensor:
    tensor = tensors[part.parameter].detach()
    return tensor.view(tensor.shape[0], -1)[slice(*part.rows), slice(*part.columns)]


def _launch(transfers: list[_Transfer]) -> _Flight:
    operations, arrivals, departures = [], [], []
    for peer, view, arrives in transfers:
        if arrives:
            buffer = view if view.is_contiguous() else torch.empty_like(view, memory_format=torch.contiguous_format)
            arrivals.append((view, buffer))
        else:
            buffer = view.contiguous()
            departures.append(buffer)
        operations.append(dist.P2POp(dist.irecv if arrives else dist.isend, buffer, peer))
    return _Flight(dist.batch_isend_irecv(operations) if operations else [], arrivals, departures)


def _land(flight: _Flight) -> int:
    """Wait for a round, put what it brought into place, and return its bytes."""
    for work in flight.works:
        work.wait()
    for view, buffer in flight.arrivals:
        if buffer is not view:
            view.copy_(buffer)
    return sum(buffer.nbytes for _, buffer in flight.arrivals)
