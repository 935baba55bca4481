"""Optimizer state lives in host memory and passes through the device in pieces, once an optimizer step; gradients leave
it while vLLM generates (parallel.offload).

What moves: the float32 main parameters and moments of the distributed optimizer, through one host buffer, page-locked
on CUDA, by copies on a stream of their own. An optimizer step brings a piece of at most PIECE bytes (or one parameter's
state), updates it and takes it back: 12 bytes a weight of this rank's share, over PCIe in either direction. Gradients
are dropped, not copied: the next backward pass starts from zero. Megatron's own ways: its offload of the optimizer
copies through pageable memory and needs all of the state on the device to step; its HybridDeviceOptimizer computes on
the host.

What stays: parameters, which vLLM aliases, keep their addresses. Every other tensor stays the same object on the same
storage object; the storage alone is emptied and filled again, so that whatever views it (`param.main_grad`, a bucket's
`grad_data`, the gradients and state that the optimizer holds) is right again afterwards. A storage's device address may
differ then: nothing here keeps one across a step, as a CUDA graph of the update or a registered NCCL buffer would.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor

PIECE = 1 << 30
"""Bytes of state that are on the device at a time in an optimizer step."""


class Offload:
    """Moves one trainer's gradients and optimizer state. All methods may be called at any time, also twice."""

    def __init__(self, ddp: DistributedDataParallel, optimizer: DistributedOptimizer) -> None:
        self.ddp, self.optimizer = ddp, optimizer
        self.buffers = [*ddp.buffers, *ddp.expert_parallel_buffers]
        self.device = self.buffers[0].grad_data.device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        groups = zip(optimizer.shard_fp32_from_float16_groups, optimizer.shard_float16_groups, strict=True)
        self.models = {main: model for group in groups for main, model in zip(*group, strict=True)}
        """Main parameters, and what they are rounded to. Float32 models have none: views of the model's buffer step."""
        self.parameters = [p for group in optimizer.optimizer.param_groups for p in group["params"]]
        self.host = self._host_buffer()
        self.away: dict[Tensor, list[tuple[torch.UntypedStorage, Tensor]]] = {}
        """By parameter: its state's storages, and where in `host` they are."""
        self.dropped: list[tuple[torch.UntypedStorage, int]] = []  # gradient buffers, and their bytes

    def offload(self) -> None:
        """Free the device of gradients and state.

        On CUDA it returns before the copies have ended; torch's allocator frees the memory when they have, and
        vLLM's wake-up empties its cache, which waits for that.
        """
        self._drop_gradients()
        self._send(self.parameters)

    def reload(self) -> None:
        """Bring all of the state to the device, for whoever reads it, and no gradients."""
        self._drop_gradients()
        self._fetch(self.parameters)

    def restore_gradients(self) -> None:
        """Take memory for gradients again; what is in it is not defined."""
        for storage, size in self.dropped:
            storage.resize_(size)
        self.dropped = []

    def _drop_gradients(self) -> None:
        if not self.dropped:
            for storage in (buffer.grad_data.untyped_storage() for buffer in self.buffers):
                self.dropped.append((storage, storage.nbytes()))
                storage.resize_(0)

    @torch.no_grad()
    def step(self) -> None:
        """DistributedOptimizer.step_with_ready_grads, piece by piece. Leaves the state on the host."""
        inner = self.optimizer.optimizer
        groups = inner.param_groups
        counts: list[dict[str, Any]] = [{} for _ in groups]
        self._send(self.parameters)
        try:
            for piece in self._pieces():
                if self.stream:  # the host would run ahead of the copies, and take memory for many pieces
                    self.stream.synchronize()
                self._fetch(piece)
                members = set(piece)
                inner.param_groups = [{**g, "params": [p for p in g["params"] if p in members]} for g in groups]
                inner.step()
                for count, group in zip(counts, inner.param_groups, strict=True):
                    if group["params"]:  # an optimizer that counts steps in its groups leaves out empty ones
                        count.update({k: v for k, v in group.items() if k != "params"})
                for main in piece:
                    if main in self.models:
                        self.models[main].copy_(main)
                self._send(piece)
            for group, count in zip(groups, counts, strict=True):
                group.update(count)
        finally:
            inner.param_groups = groups
        if not self.ddp.ddp_config.overlap_param_gather:
            self.ddp.start_param_sync()

    def _pieces(self) -> Iterator[list[Tensor]]:
        piece: list[Tensor] = []
        size = 0
        for p in self.parameters:
            nbytes = self._slot_bytes(p)
            if piece and size + nbytes > PIECE:
                yield piece
                piece, size = [], 0
            piece.append(p)
            size += nbytes
        yield piece

    def _state(self, parameter: Tensor) -> Iterator[torch.UntypedStorage]:
        if parameter in self.models:
            yield parameter.untyped_storage()
        for tensor in self.optimizer.optimizer.state.get(parameter, {}).values():
            if torch.is_tensor(tensor) and tensor.dim():
                yield tensor.untyped_storage()

    def _slot_bytes(self, parameter: Tensor) -> int:
        """Two moments, and the main parameter where it is one: float32."""
        return 4 * parameter.numel() * (3 if parameter in self.models else 2)

    def _send(self, parameters: list[Tensor]) -> None:
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        for p in parameters:
            if p in self.away:
                continue
            start, self.away[p] = self.slots[p], []
            for storage in self._state(p):
                slot = self.host[start : start + storage.nbytes()]
                start += storage.nbytes()
                self._copy(slot, _bytes(storage))
                self.away[p].append((storage, slot))
                storage.resize_(0)

    def _fetch(self, parameters: list[Tensor]) -> None:
        """What is enqueued from now on sees the state."""
        moves = [move for p in parameters for move in self.away.pop(p, [])]
        for storage, slot in moves:
            storage.resize_(slot.numel())
        if self.stream:  # the memory may still be in use by what was enqueued before it was free
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        for storage, slot in moves:
            self._copy(_bytes(storage), slot)
        if self.stream:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _host_buffer(self) -> Tensor:
        """With a place for each parameter's state. Not by pin_memory, which rounds up to a power of two. Not for forked
        processes, as a checkpoint's writer is: Linux would copy page-locked memory for it at once, or, before 5.10,
        leave this process with other pages than the device writes to."""
        self.slots, size = {}, 0
        for p in self.parameters:
            self.slots[p] = size
            size += self._slot_bytes(p)
        memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_DONTFORK)
        host = torch.frombuffer(memory, dtype=torch.uint8)
        if self.stream:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(host.data_ptr(), host.numel(), 0))
        return host

    def _copy(self, target: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):  # None: no stream
            target.copy_(source, non_blocking=True)
        if self.stream:
            (target if target.is_cuda else source).record_stream(self.stream)


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
