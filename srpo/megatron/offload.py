"""Gradients and optimizer state leave the device while vLLM generates, and come back for the update (parallel.offload).

What moves: the float32 main parameters and moments of the distributed optimizer, through one host buffer, page-locked
on CUDA, by copies on a stream of their own. Gradients are dropped, not copied: the next backward pass starts from zero.
Megatron's own offload of the optimizer copies through pageable memory, in order, and replaces tensors.

What stays: parameters, which vLLM aliases, keep their addresses. Every other tensor stays the same object on the same
storage object; the storage alone is emptied and filled again, so that whatever views it (`param.main_grad`, a bucket's
`grad_data`, the gradients and state that the optimizer holds) is right again after `reload`. A storage's device address
may differ afterwards: nothing here keeps one across a step, as a CUDA graph of the update or a registered NCCL buffer
would. The host buffer stays where it is until the state grows, which it does once, in the first step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


class Offload:
    """Moves one trainer's gradients and optimizer state. Both methods may be called at any time, also twice."""

    def __init__(self, ddp: DistributedDataParallel, optimizer: DistributedOptimizer) -> None:
        self.buffers = [*ddp.buffers, *ddp.expert_parallel_buffers]
        self.optimizer = optimizer
        self.device = self.buffers[0].grad_data.device
        self.stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.host = torch.empty(0, dtype=torch.uint8)
        self.away: list[tuple[torch.UntypedStorage, torch.Tensor]] = []  # what is on the host, and where in `host`
        self.dropped: list[tuple[torch.UntypedStorage, int]] = []  # gradient buffers, and their bytes

    def offload(self) -> None:
        """Copy the state out and free it and the gradients.

        On CUDA it returns before the copies have ended; torch's allocator frees the memory when they have, and
        vLLM's wake-up empties its cache, which waits for that.
        """
        if self.dropped:
            return
        for storage in (buffer.grad_data.untyped_storage() for buffer in self.buffers):
            self.dropped.append((storage, storage.nbytes()))
            storage.resize_(0)
        storages = list(self._state())
        self._reserve(sum(s.nbytes() for s in storages))
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        start = 0
        for storage in storages:
            slot = self.host[start : start + storage.nbytes()]
            start += storage.nbytes()
            self._copy(slot, _bytes(storage))
            self.away.append((storage, slot))
            storage.resize_(0)

    def reload(self, wait: bool = True) -> None:
        """Take the memory again and copy the state back; gradients are zero.

        With `wait`, what is enqueued from now on sees the state. Without, only the gradients are sure to be there, and
        the copies go on beside what is enqueued.
        """
        for storage, size in self.dropped:
            storage.resize_(size)
            _bytes(storage).zero_()
        for storage, slot in self.away:
            storage.resize_(slot.numel())
        if self.stream and self.away:  # the memory may still be in use by what was enqueued before it was free
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        for storage, slot in self.away:
            self._copy(_bytes(storage), slot)
        self.dropped, self.away = [], []
        if self.stream and wait:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def _state(self) -> Iterator[torch.UntypedStorage]:
        """Each storage once. Float32 parameters are no state: the optimizer updates views of the model's buffer."""
        seen: set[int] = set()
        tensors = [p for group in self.optimizer.shard_fp32_from_float16_groups for p in group]
        for state in self.optimizer.optimizer.state.values():
            tensors += [t for t in state.values() if torch.is_tensor(t)]
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if tensor.dim() and tensor.device == self.device and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                yield storage

    def _reserve(self, size: int) -> None:
        """A host buffer of at least `size` bytes. Not by pin_memory, which rounds up to a power of two."""
        if size <= self.host.numel():
            return
        if self.stream and self.host.numel():
            self.stream.synchronize()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.host.data_ptr()))
        self.host = torch.empty(0, dtype=torch.uint8)  # first free the smaller one
        self.host = torch.empty(size, dtype=torch.uint8)
        if self.stream:
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(self.host.data_ptr(), size, 0))

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        with torch.cuda.stream(self.stream):  # None: no stream
            target.copy_(source, non_blocking=True)
        if self.stream:
            (target if target.is_cuda else source).record_stream(self.stream)


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
