"""Bringing vLLM's weights up to date where its layout is not the trainer's: the plan, its bytes, and its speed.

    python -m benchmarks.bench_sync --out new.json                        # starts ranks of its own
    torchrun --nproc-per-node 8 -m benchmarks.bench_sync --model DIR/config.json --layout 8x1 --to 4x1
    python -m benchmarks.bench_sync --model DIR/config.json --layout 8x4 --to 4x1 --world 64    # prints the plan

Layouts are tensor x pipeline. Of a model only the sizes matter: the tensors have the trainer's and vLLM's shapes and
random values, without either of them. With --world nothing is allocated and no rank is started.

A round takes one sync and then the link: for each pair of ranks that the sync uses, the same bytes from one contiguous
buffer to another, nothing else. Both last as long as on the slowest rank. GB/s are of the rank that sends or receives
most. `to_link` is the sync's time over the link's, the median of the rounds' ratios; the sync's has the copies within a
rank as well. `to_bound` is the bytes that arrived over the fewest possible ones. A wrong number of bytes, or a hole in
what vLLM would have, ends the benchmark.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoConfig, Qwen2Config

from benchmarks.compare import write
from benchmarks.timing import device_name, peak_memory
from srpo.rollout.reshard import Plan, plan
from srpo.rollout.shares import Layout, parameters, shapes
from srpo.rollout.transport import Transport

SMALL = Qwen2Config(hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8,
                    num_key_value_heads=4, vocab_size=32000, tie_word_embeddings=False)
"""64 million parameters."""
DTYPE = torch.bfloat16
MESSAGE = 256 << 20
"""Bytes; the link's buffers are no larger."""
PAIRS = {2: ["1x2->2x1", "1x2->1x1", "2x1->1x1", "1x1->2x1"],
         4: ["2x2->4x1", "1x4->4x1", "4x1->2x1", "2x2->1x1", "2x1->4x1"]}
"""By the number of ranks."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="config.json of a Hugging Face model (one of 64 million parameters)")
    parser.add_argument("--layout", type=_layout, metavar="TPxPP", help="the trainer's (without it, several)")
    parser.add_argument("--to", type=_layout, metavar="TPxPP", help="vLLM's")
    parser.add_argument("--world", type=int, metavar="N", help="print the plan for N ranks, and do nothing")
    parser.add_argument("--node", type=int, help="ranks of a machine (with --world 8, else those that there are)")
    parser.add_argument("--ranks", type=int, default=max(2, torch.cuda.device_count()),
                        help="to start, without torchrun (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="syncs measured, after one that is not (%(default)s)")
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    options = parser.parse_args(arguments)
    if (options.layout is None) != (options.to is None):
        parser.error("--layout and --to go together")
    ranks = options.world or int(os.environ.get("WORLD_SIZE", options.ranks))
    if options.layout is None and ranks not in PAIRS:
        parser.error(f"--layout and --to: needed with {ranks} ranks")
    pairs = [(options.layout, options.to)] if options.layout else [_pair(text) for text in PAIRS[ranks]]
    hf = AutoConfig.from_pretrained(options.model.parent) if options.model else SMALL
    for each in {layout for pair in pairs for layout in pair}:
        if wrong := _misfit(hf, each, ranks):
            parser.error(f"{each}: {wrong}")
    if options.world:
        for train, rollout in pairs:
            print(plan(hf, train, rollout, itemsize=DTYPE.itemsize, node=options.node or 8), flush=True)
    elif "RANK" in os.environ:
        _measure_all(hf, pairs, options)
    else:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        mp.spawn(_start, (ranks, port, hf, pairs, options), nprocs=ranks)


def _layout(text: str) -> Layout:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r}: write it as TENSORxPIPELINE, 8x1 for example")
    return Layout(*map(int, text.split("x")))


def _pair(text: str) -> tuple[Layout, Layout]:
    train, rollout = map(_layout, text.split("->"))
    return train, rollout


def _misfit(hf: Any, layout: Layout, ranks: int) -> str:
    heads, kv_heads = hf.num_attention_heads, hf.num_key_value_heads
    if heads % layout.tensor or hf.intermediate_size % layout.tensor:
        return f"{heads} heads and a width of {hf.intermediate_size} do not divide"
    if kv_heads % layout.tensor and layout.tensor % kv_heads:
        return f"{kv_heads} key-value heads neither divide nor can be repeated"
    if hf.num_hidden_layers % layout.pipeline:
        return f"{hf.num_hidden_layers} layers do not divide"
    return f"{ranks} ranks do not divide" if ranks % layout.ranks else ""


# -- measuring -------------------------------------------------------------------------------------------------------


def _start(rank: int, ranks: int, port: int, *rest: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    _measure_all(*rest)


def _measure_all(hf: Any, pairs: list[tuple[Layout, Layout]], options: argparse.Namespace) -> None:
    """On every rank; the first one reports."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if cuda else "gloo")
    node = options.node or int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    rows = [measure(hf, *pair, device, node, options.rounds) for pair in pairs]
    if dist.get_rank() == 0:
        document = {"device": device_name(device), "threads": torch.get_num_threads(), "quick": False,
                    "ranks": dist.get_world_size(), "dtype": str(DTYPE).removeprefix("torch."),
                    "load": os.getloadavg()[0], "rows": rows}
        print(table(document), flush=True)
        if options.out is not None:
            write(document, options.out)
    dist.destroy_process_group()


def measure(hf: Any, train: Layout, rollout: Layout, device: torch.device, node: int, rounds: int) -> dict[str, Any]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    began = time.perf_counter()
    p = plan(hf, train, rollout, itemsize=DTYPE.itemsize, rank=rank, node=node)
    planned = time.perf_counter() - began
    source = {name: torch.randn(shape, dtype=DTYPE, device=device)
              for name, shape in shapes(parameters(hf, train, vllm=False)[rank % train.ranks]).items()}
    target = {name: torch.full(shape, torch.nan, dtype=DTYPE, device=device)
              for name, shape in p.shapes[rank - p.first].items() if name not in p.aliases[rank - p.first]}
    transport, link = Transport(p, source, target), _link(p, device)
    dist.barrier()
    arrived = transport.run()
    assert arrived == p.needed[rank - p.first]
    assert all(t.isfinite().all() for t in target.values()), "the sync left a hole"
    link()
    seconds = [(_seconds(transport.run, device), _seconds(link, device)) for _ in range(rounds)]
    staged = _over_ranks(peak_memory(transport.run, device), dist.ReduceOp.MAX, device)
    moved = _over_ranks(arrived, dist.ReduceOp.SUM, device)
    bound = _over_ranks(p.needed[rank - p.first], dist.ReduceOp.SUM, device)
    busiest = max(*p.sent, *p.received)
    sync = statistics.median(s for s, _ in seconds)
    row: dict[str, Any] = {
        "case": f"{train}->{rollout} on {ranks}", "implementation": "srpo", "ratios": {}, "plan_seconds": planned,
        "bytes": moved, "bound": bound, "staged": staged, "largest_slice": p.largest, "rounds": len(p.rounds),
        "copied": sum(p.copied), "aliased": sum(p.aliased), "sync_seconds": sync,
        "link_seconds": statistics.median(wire for _, wire in seconds)}
    if moved:
        row["gb_s"], row["link_gb_s"] = (busiest / row[key] / 1e9 for key in ("sync_seconds", "link_seconds"))
        row["ratios"] = {"to_link": statistics.median(s / wire for s, wire in seconds), "to_bound": moved / bound}
    return row


def _link(p: Plan, device: torch.device) -> Callable[[], None]:
    """The same bytes between the same ranks, and nothing else."""
    rank = dist.get_rank() - p.first
    pairs: defaultdict[tuple[int, int], int] = defaultdict(int)
    for m in (m for moves in p.rounds for m in moves):
        pairs[m.source, m.target] += m.nbytes
    mine = {ends: nbytes for ends, nbytes in sorted(pairs.items()) if rank in ends}
    buffers = {ends: torch.zeros(min(nbytes, MESSAGE), dtype=torch.uint8, device=device)
               for ends, nbytes in mine.items()}
    steps = range(0, max(pairs.values(), default=0), MESSAGE)

    def send() -> None:
        for start in steps:
            operations = []
            for ends, nbytes in mine.items():
                if (size := min(nbytes - start, MESSAGE)) > 0:
                    sends = rank == ends[0]
                    operations.append(dist.P2POp(dist.isend if sends else dist.irecv, buffers[ends][:size],
                                                 p.first + ends[sends]))
            for work in dist.batch_isend_irecv(operations) if operations else []:
                work.wait()

    return send


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of the slowest rank."""
    dist.barrier()
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return _over_ranks(time.perf_counter() - began, dist.ReduceOp.MAX, device)


def _over_ranks(value: Any, how: Any, device: torch.device) -> Any:
    box = torch.tensor(value, device=device)
    dist.all_reduce(box, how)
    return type(value)(box.item())


def table(document: dict[str, Any]) -> str:
    lines = [f"{document['device']}, {document['ranks']} ranks of {document['threads']} threads, {document['dtype']}, "
             f"load average {document['load']:.1f}",
             f"{'':20}{'plan ms':>9}{'MiB moved':>11}{'x bound':>9}{'MiB staged':>12}{'sync ms':>9}{'GB/s':>7}"
             f"{'link GB/s':>11}{'x link':>8}"]
    for row in document["rows"]:
        line = f"{row['case']:20}{row['plan_seconds'] * 1e3:9.1f}{row['bytes'] / 2**20:11.1f}"
        ratios = row["ratios"]
        line += f"{ratios['to_bound']:9.3f}" if ratios else f"{'':9}"
        line += f"{row['staged'] / 2**20:12.2f}{row['sync_seconds'] * 1e3:9.2f}"
        line += f"{row['gb_s']:7.2f}{row['link_gb_s']:11.2f}{ratios['to_link']:8.2f}" if ratios else ""
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
