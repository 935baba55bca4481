"""Which bytes go where when vLLM's layout is not the trainer's: a plan from shapes alone, computed alike on every rank.

A parameter of vLLM's that lies in one piece in the rank's own training shard is aliased. Of every other one, the slices
that the rank holds are copied, and each slice that it lacks comes exactly once from another rank, straight into its
place. Over the whole model no byte travels that could have stayed (`Plan.received` equals `Plan.needed`), no tensor is
ever put together, and what cannot be sent from or received into its place, a block of columns, passes through a buffer
of at most STAGING bytes.

The world falls into blocks of lcm(trainer's ranks, vLLM's ranks), each with whole replicas of both; plans stay within
a block. A slice comes from the nearest rank that has it, one of the same node if there is any, and among these from the
one that has least to send. Where several ranks of another node lack it, one receives it and passes it on.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from srpo.rollout.shares import Layout, Part, Piece, Span, parameters, shapes

STAGING = 256 << 20
"""Bytes in flight on a rank; fewer where the largest slice is smaller."""


class Move(NamedTuple):
    """A slice from the trainer's storage on one rank to vLLM's on another, or on the same; both count from the plan's
    first rank. `relayed`: from vLLM's storage on the source instead, which received it in an earlier round."""

    source: int
    target: int
    read: Part
    write: Part
    nbytes: int
    relayed: bool = False


class Alias(NamedTuple):
    """A parameter of vLLM's is these rows of one of the trainer's, counted from `row`."""

    parameter: str
    row: int


class Taker(NamedTuple):
    """A rank and the parameter that a slice comes to, or from."""

    rank: int
    piece: Piece


Held = dict[str, Piece]
"""What the trainer has on a rank, by tensor."""
Missing = dict[tuple[str, Span], list[Taker]]
"""Who lacks a slice of a tensor, which one training shard has whole."""


@dataclass(frozen=True)
class Plan:
    """Lists have an entry for each of the block's ranks, which begin with `first`."""

    train: Layout
    rollout: Layout
    itemsize: int
    first: int
    shapes: list[dict[str, tuple[int, ...]]]
    """vLLM's parameters."""
    aliases: list[dict[str, Alias]]
    copies: list[list[Move]]
    padding: list[list[Part]]
    """Vocabulary rows beyond the tensor's, in parameters that are not aliased: zero."""
    needed: list[int]
    """Lower bound: bytes that a rank must have for vLLM and does not hold as the trainer's."""
    largest: int
    """Bytes of the largest slice of one tensor that one rank sends to another."""
    rounds: list[list[Move]]
    """Moves between ranks. In a round a rank sends at most STAGING / 4 bytes, and receives as many."""

    @property
    def ranks(self) -> int:
        return len(self.shapes)

    @property
    def received(self) -> list[int]:
        """Bytes that reach a rank in one sync."""
        return self._sum("target")

    @property
    def sent(self) -> list[int]:
        return self._sum("source")

    @property
    def aliased(self) -> list[int]:
        """Bytes of vLLM's parameters that are the trainer's storage."""
        return [sum(self._nbytes(rank, name) for name in names) for rank, names in enumerate(self.aliases)]

    @property
    def copied(self) -> list[int]:
        return [sum(m.nbytes for m in moves) for moves in self.copies]

    def summary(self, rank: int) -> str:
        """One line for one of the block's ranks."""
        moved = {m.write.parameter for moves in self.rounds for m in moves if m.target == rank}
        line = (f"weights: aliased {len(self.aliases[rank])} tensors ({_gib(self.aliased[rank])} GiB), "
                f"moved {len(moved)} tensors ({_gib(self.received[rank])} GiB a sync)")
        if copied := {m.write.parameter for m in self.copies[rank]}:
            line += f", copied {len(copied)} within the rank, or parts of them ({_gib(self.copied[rank])} GiB a sync)"
        return line

    def __str__(self) -> str:
        kinds: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        for rank, aliases in enumerate(self.aliases):
            for name in aliases:
                kinds[_kind(name)][0] += self._nbytes(rank, name)
        for column, moves in ((1, self.copies), (2, self.rounds)):
            for m in (m for some in moves for m in some):
                kinds[_kind(m.write.parameter)][column] += m.nbytes
        every = [self.aliased, self.copied, self.received, self.sent, self.needed]
        lines = [f"reshard plan {self.train} -> {self.rollout} (tensor x pipeline), ranks {self.first} to "
                 f"{self.first + self.ranks - 1}, {self.itemsize} bytes an element; GiB",
                 f"{'parameter':32}{'aliased':>10}{'copied':>10}{'received':>10}"]
        lines += [f"{kind:32}" + "".join(f"{_gib(n):>10}" for n in numbers) for kind, numbers in kinds.items()]
        lines += [f"{'rank':32}{'aliased':>10}{'copied':>10}{'received':>10}{'sent':>10}{'needed':>10}"]
        lines += [f"{self.first + rank:<32}" + "".join(f"{_gib(n[rank]):>10}" for n in every)
                  for rank in range(self.ranks)]
        lines += [f"{'all':32}" + "".join(f"{_gib(sum(n)):>10}" for n in every)]
        ratio = sum(self.received) / sum(self.needed) if sum(self.needed) else 1.0
        lines += [f"bytes moved / lower bound = {ratio:.3f}; {sum(map(len, self.rounds))} moves in {len(self.rounds)} "
                  f"rounds; largest slice {self.largest / 2**20:.1f} MiB"]
        return "\n".join(lines)

    def _sum(self, end: str) -> list[int]:
        out = [0] * self.ranks
        for move in (m for moves in self.rounds for m in moves):
            out[getattr(move, end)] += move.nbytes
        return out

    def _nbytes(self, rank: int, name: str) -> int:
        return math.prod(self.shapes[rank][name]) * self.itemsize


def plan(hf: Any, train: Layout, rollout: Layout, *, itemsize: int, rank: int = 0, node: int = 8) -> Plan:
    """The plan of the block that `rank` belongs to.

    hf: a transformers config of a dense Llama, Qwen2 or Qwen3; only its sizes are read. itemsize: bytes of an element.
    node: ranks that share a machine, adjacent ones.
    """
    ranks = math.lcm(train.ranks, rollout.ranks)
    first = rank // ranks * ranks
    wanted = parameters(hf, rollout, vllm=True) * (ranks // rollout.ranks)
    held: list[Held] = [{p.entry.name: p for pieces in mine.values() for p in pieces}
                        for mine in parameters(hf, train, vllm=False)] * (ranks // train.ranks)
    sizes = {piece.entry.name: piece.entry.size for have in held for piece in have.values()}
    aliases = [{name: alias for name, pieces in mine.items() if (alias := _alias(pieces, have))}
               for mine, have in zip(wanted, held, strict=True)]
    copies: list[list[Move]] = [[] for _ in range(ranks)]
    padding: list[list[Part]] = [[] for _ in range(ranks)]
    missing: Missing = defaultdict(list)
    for r, mine in enumerate(wanted):
        for piece in (p for name, pieces in mine.items() if name not in aliases[r] for p in pieces):
            padding[r] += piece.padding()
            have = held[r].get(piece.entry.name)
            inside, outside = _divide(piece.span, have.span if have else (0, 0))
            if have and inside[0] < inside[1]:
                copies[r].append(_move(Taker(r, have), Taker(r, piece), *piece.block(inside), itemsize))
            for span in outside:
                for part in _cut(span, sizes[piece.entry.name]):
                    missing[piece.entry.name, part].append(Taker(r, piece))

    largest, needed = 0, [0] * ranks
    for (_, (begin, end)), takers in missing.items():
        nbytes = (end - begin) * takers[0].piece.line * itemsize
        largest = max(largest, nbytes)
        for taker in takers:
            needed[taker.rank] += nbytes
    moves = _route(missing, held, itemsize, min(STAGING, largest) // 8, lambda r: (first + r) // node)
    rounds = _schedule(moves, min(STAGING, largest) // 4)
    return Plan(train, rollout, itemsize, first, [*map(shapes, wanted)], aliases, copies, padding, needed, largest,
                rounds)


def _alias(pieces: list[Piece], held: Held) -> Alias | None:
    """The rows of the trainer's storage on this rank that are a whole parameter of vLLM's, padding included."""
    found = set()
    for piece in pieces:
        have = held.get(piece.entry.name)
        if have is None:
            return None
        begin = piece.begin - have.begin
        whole = begin == 0 and piece.entry.size == have.entry.size
        if begin < 0 or begin + piece.entry.size > have.entry.size or (piece.entry.axis == 1 and not whole):
            return None
        found.add(Alias(have.parameter, have.entry.start + begin - piece.entry.start))
    return found.pop() if len(found) == 1 else None


def _divide(span: Span, held: Span) -> tuple[Span, list[Span]]:
    """What of a span is held, and the one or two others that are not."""
    inside = max(span[0], held[0]), min(span[1], held[1])
    if inside[0] >= inside[1]:
        return (0, 0), [span] if span[0] < span[1] else []
    return inside, [(a, b) for a, b in ((span[0], inside[0]), (inside[1], span[1])) if a < b]


def _cut(span: Span, size: int) -> Iterator[Span]:
    """At multiples of `size`, a training shard's."""
    for begin in range(span[0] // size * size, span[1], size):
        yield max(span[0], begin), min(span[1], begin + size)


def _move(source: Taker, target: Taker, rows: Span, columns: Span, itemsize: int, relayed: bool = False) -> Move:
    """Of a block of the full tensor."""
    nbytes = (rows[1] - rows[0]) * (columns[1] - columns[0]) * itemsize
    return Move(source.rank, target.rank, source.piece.place(rows, columns), target.piece.place(rows, columns), nbytes,
                relayed)


# -- who sends, and when ---------------------------------------------------------------------------------------------


def _route(missing: Missing, held: list[Held], itemsize: int, limit: int, node: Callable[[int], int]) -> list[Move]:
    """A source for every missing slice of every rank, in chunks of whole rows of at most `limit` bytes, in an order in
    which all ranks send and receive at the same time."""
    sent, received = [0] * len(held), [0] * len(held)
    moves: list[tuple[bool, int, Move]] = []

    def add(source: Taker, target: Taker, rows: Span, columns: Span, relayed: bool) -> None:
        move = _move(source, target, rows, columns, itemsize, relayed)
        moves.append((relayed, max(sent[source.rank], received[target.rank]), move))
        sent[source.rank] += move.nbytes
        received[target.rank] += move.nbytes

    for (tensor, span), takers in missing.items():
        owners = [r for r, have in enumerate(held) if tensor in have and _divide(span, have[tensor].span)[0] == span]
        nodes = {node(r) for r in owners}
        (top, bottom), columns = takers[0].piece.block(span)
        height = max(1, limit // ((columns[1] - columns[0]) * itemsize))
        for row in range(top, bottom, height):
            rows = row, min(row + height, bottom)
            arrived: dict[int, Taker] = {}
            for taker in takers:
                place = node(taker.rank)
                if place in arrived:
                    add(arrived[place], taker, rows, columns, relayed=True)
                    continue
                near = [r for r in owners if node(r) == place or place not in nodes]
                _, _, source = min((sent[r], abs(r - taker.rank), r) for r in near)
                add(Taker(source, held[source][tensor]), taker, rows, columns, relayed=False)
                if place not in nodes:
                    arrived[place] = taker
    return [move for _, _, move in sorted(moves, key=lambda m: m[:2])]


def _schedule(moves: list[Move], capacity: int) -> list[list[Move]]:
    """Rounds: each move in the first in which one rank may still send it and the other receive it. What is passed on
    arrived at least two rounds before, since two are under way at a time."""
    rounds: list[list[Move]] = []
    used: defaultdict[tuple[str, int, int], int] = defaultdict(int)  # bytes by direction, rank and round
    first: defaultdict[tuple[str, int], int] = defaultdict(int)      # round with room, by direction and rank
    arrival: dict[tuple[int, Part], int] = {}
    for m in moves:
        ends = ("send", m.source), ("receive", m.target)
        number = max(first[ends[0]], first[ends[1]], arrival[m.source, m.read] + 2 if m.relayed else 0)
        while any(0 < used[*end, number] > capacity - m.nbytes for end in ends):
            number += 1
        for end in ends:
            used[*end, number] += m.nbytes
            while used[*end, first[end]] >= capacity - capacity // 8:
                first[end] += 1
        rounds += [[] for _ in range(number + 1 - len(rounds))]
        rounds[number].append(m)
        arrival[m.target, m.write] = number
    return rounds


def _kind(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.3f}"
