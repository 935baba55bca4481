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

from srpo.megatron.layout import Entry, layout

STAGING = 256 << 20
"""Bytes in flight on a rank; fewer where the largest slice is smaller."""

Span = tuple[int, int]
"""Begin and end."""


class Layout(NamedTuple):
    """Tensor ranks are adjacent, then pipeline stages, then replicas: Megatron's order here and vLLM's."""

    tensor: int
    pipeline: int

    @property
    def ranks(self) -> int:
        """Of one replica."""
        return self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"{self.tensor}x{self.pipeline}"


class Part(NamedTuple):
    """A block of a rank's parameter. A vector is a single column."""

    parameter: str
    rows: Span
    columns: Span


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


class Piece(NamedTuple):
    """A rank's share of a tensor, where the entry says; it begins at `begin` of the full tensor."""

    entry: Entry
    parameter: str
    begin: int

    @property
    def span(self) -> Span:
        """Along the entry's axis, without padding."""
        end = self.entry.shape[self.entry.axis]
        return min(self.begin, end), min(self.begin + self.entry.size, end)


class Taker(NamedTuple):
    """A rank that lacks a slice of a piece."""

    rank: int
    piece: Piece


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
    held = [{p.entry.name: p for p in pieces} for pieces in _pieces(hf, train, ranks, _megatron_name)]
    wanted = [_by_parameter(pieces) for pieces in _pieces(hf, rollout, ranks, vllm_name)]
    aliases = [{name: alias for name, pieces in mine.items() if (alias := _alias(pieces, have))}
               for mine, have in zip(wanted, held, strict=True)]
    cuts = {e.name: e.size for e in layout(hf, *train)}
    copies: list[list[Move]] = [[] for _ in range(ranks)]
    padding: list[list[Part]] = [[] for _ in range(ranks)]
    missing: dict[tuple[str, Span], list[Taker]] = defaultdict(list)
    for r, mine in enumerate(wanted):
        for piece in (p for name, pieces in mine.items() if name not in aliases[r] for p in pieces):
            padding[r] += _padding(piece)
            have = held[r].get(piece.entry.name)
            inside, outside = _divide(piece.span, have.span if have else (0, 0))
            if have and inside[0] < inside[1]:
                copies[r].append(_move(r, r, have, piece, *_block(piece.entry, inside), itemsize))
            for span in outside:
                for cut in _cut(span, cuts[piece.entry.name]):
                    missing[piece.entry.name, cut].append(Taker(r, piece))

    largest, needed = 0, [0] * ranks
    for (_, (begin, end)), takers in missing.items():
        nbytes = (end - begin) * _line(takers[0].piece.entry) * itemsize
        largest = max(largest, nbytes)
        for taker in takers:
            needed[taker.rank] += nbytes
    moves = _route(missing, held, itemsize, min(STAGING, largest) // 8, lambda r: (first + r) // node)
    rounds = _schedule(moves, min(STAGING, largest) // 4)
    return Plan(train, rollout, itemsize, first, [{name: _shape(p) for name, p in mine.items()} for mine in wanted],
                aliases, copies, padding, needed, largest, rounds)


def shapes(hf: Any, layout: Layout, rank: int, *, vllm: bool) -> dict[str, tuple[int, ...]]:
    """Parameters of a rank of the trainer (its layers counted over all stages) or of vLLM."""
    pieces = _pieces(hf, layout, rank + 1, vllm_name if vllm else _megatron_name)[rank]
    return {name: _shape(some) for name, some in _by_parameter(pieces).items()}


# -- where tensors lie -----------------------------------------------------------------------------------------------

_TOP = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_LAYER = {
    "input_layernorm": "input_layernorm",
    "self_attention.linear_qkv": "self_attn.qkv_proj",
    "self_attention.q_layernorm": "self_attn.q_norm",
    "self_attention.k_layernorm": "self_attn.k_norm",
    "self_attention.linear_proj": "self_attn.o_proj",
    "pre_mlp_layernorm": "post_attention_layernorm",
    "mlp.linear_fc1": "mlp.gate_up_proj",
    "mlp.linear_fc2": "mlp.down_proj",
}


def vllm_name(entry: Entry) -> str:
    """vLLM's name of the parameter that holds a tensor."""
    if entry.duplicate:
        return entry.name
    if not entry.parameter.startswith("decoder.layers."):
        return _TOP[entry.parameter]
    number, rest = entry.parameter.removeprefix("decoder.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    return f"model.layers.{number}.{_LAYER[module]}.{kind}"


def _megatron_name(entry: Entry) -> str:
    return entry.parameter


def _pieces(hf: Any, of: Layout, ranks: int, name: Callable[[Entry], str]) -> list[list[Piece]]:
    """What each of the ranks holds in one of the layouts; replicas share a list."""
    replica: list[list[Piece]] = [[] for _ in range(of.ranks)]
    for entry in layout(hf, of.tensor, of.pipeline):
        parameter = name(entry)
        for t in range(of.tensor):
            replica[entry.stage * of.tensor + t].append(Piece(entry, parameter, entry.begin(t, of.tensor)))
    return [replica[r % of.ranks] for r in range(ranks)]


def _by_parameter(pieces: list[Piece]) -> dict[str, list[Piece]]:
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(piece.parameter, []).append(piece)
    return found


def _shape(pieces: list[Piece]) -> tuple[int, ...]:
    """Of a parameter of these pieces."""
    shape = list(pieces[0].entry.shape)
    shape[pieces[0].entry.axis] = sum(p.entry.size for p in pieces)
    return tuple(shape)


def _alias(pieces: list[Piece], held: dict[str, Piece]) -> Alias | None:
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


def _width(entry: Entry) -> int:
    """Columns of the full tensor."""
    return math.prod(entry.shape[1:])


def _line(entry: Entry) -> int:
    """Elements of one step along the entry's axis."""
    return math.prod(entry.shape) // entry.shape[entry.axis]


def _divide(span: Span, held: Span) -> tuple[Span, list[Span]]:
    """What of a span is held, and the one or two others that are not."""
    inside = max(span[0], held[0]), min(span[1], held[1])
    if inside[0] >= inside[1]:
        return (0, 0), [span] if span[0] < span[1] else []
    return inside, [(a, b) for a, b in ((span[0], inside[0]), (inside[1], span[1])) if a < b]


def _cut(span: Span, size: int) -> Iterator[Span]:
    """At multiples of `size`: each part has one owner a replica."""
    for begin in range(span[0] // size * size, span[1], size):
        yield max(span[0], begin), min(span[1], begin + size)


def _padding(piece: Piece) -> list[Part]:
    """The rows of a share that lie beyond the full tensor."""
    entry, rows = piece.entry, piece.entry.size - (piece.span[1] - piece.span[0])
    end = entry.start + entry.size
    return [Part(piece.parameter, (end - rows, end), (0, _width(entry)))] if rows else []


def _block(entry: Entry, span: Span) -> tuple[Span, Span]:
    """Rows and columns of a span of the full tensor."""
    return (span, (0, _width(entry))) if entry.axis == 0 else ((0, entry.shape[0]), span)


def _place(piece: Piece, rows: Span, columns: Span) -> Part:
    """Where a block of the full tensor lies in the piece's parameter."""
    shift = piece.entry.start - piece.begin
    if piece.entry.axis == 0:
        return Part(piece.parameter, (rows[0] + shift, rows[1] + shift), columns)
    return Part(piece.parameter, rows, (columns[0] + shift, columns[1] + shift))


def _move(source: int, target: int, read: Piece, write: Piece, rows: Span, columns: Span, itemsize: int,
          relayed: bool = False) -> Move:
    nbytes = (rows[1] - rows[0]) * (columns[1] - columns[0]) * itemsize
    return Move(source, target, _place(read, rows, columns), _place(write, rows, columns), nbytes, relayed)


# -- who sends, and when ---------------------------------------------------------------------------------------------


def _route(missing: dict[tuple[str, Span], list[Taker]], held: list[dict[str, Piece]], itemsize: int, limit: int,
           node: Callable[[int], int]) -> list[Move]:
    """A source for every missing slice of every rank, in chunks of whole rows of at most `limit` bytes, in an order in
    which all ranks send and receive at the same time."""
    sent, received = [0] * len(held), [0] * len(held)
    moves: list[tuple[bool, int, Move]] = []

    def add(source: Taker, target: Taker, rows: Span, columns: Span, relayed: bool) -> None:
        move = _move(source.rank, target.rank, source.piece, target.piece, rows, columns, itemsize, relayed)
        moves.append((relayed, max(sent[source.rank], received[target.rank]), move))
        sent[source.rank] += move.nbytes
        received[target.rank] += move.nbytes

    for (tensor, span), takers in missing.items():
        owners = [r for r, have in enumerate(held) if tensor in have and _divide(span, have[tensor].span)[0] == span]
        nodes = {node(r) for r in owners}
        (top, bottom), columns = _block(takers[0].piece.entry, span)
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
