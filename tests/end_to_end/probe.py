"""`srpo` with an observer inside: is vLLM's memory the trainer's, step by step, and what stops a run when it is not?

    torchrun ... probe.py train CONFIG

Writes OUT-RANK.json, one entry a step, and the weights that the run began with as OUT.safetensors, which the
environment names in PROBE_OUT. With PROBE_CORRUPT=N vLLM's weights on the last rank are no more the trainer's after
step N.
"""

import json
import os

import torch
from safetensors.torch import save_file
from vllm.compilation.counter import compilation_counter

import srpo.train
from srpo import cli


class ProbedRun(srpo.train.Run):
    def __init__(self, config):
        super().__init__(config)
        self.seen = []
        shards = self.trainer.shards
        loaded = {e.name: shards.full(e).clone() for e in shards.entries()}
        if self.rank == 0:
            save_file(loaded, f"{os.environ['PROBE_OUT']}.safetensors")

    def step(self, plan):
        before = [p.detach().clone() for _, p in self.trainer.named_parameters()]
        addresses, shared = self.addresses(), self.shares()
        try:
            return super().step(plan)
        finally:
            after = [p.detach() for _, p in self.trainer.named_parameters()]
            self.seen.append({
                "step": plan.step,
                "prompts": self.sampled,
                "parameters": len(addresses),
                "aliased": shared and self.shares(),
                "stayed": addresses == self.addresses(),
                "updated": not all(map(torch.equal, before, after)),
                "graphs": compilation_counter.num_cudagraph_captured,
            })
            with open(f"{os.environ['PROBE_OUT']}-{self.rank}.json", "w") as file:
                json.dump(self.seen, file)
            last_rank = self.rank == torch.distributed.get_world_size() - 1
            if last_rank and plan.step == int(os.environ.get("PROBE_CORRUPT", "-1")):
                self.engine.llm.apply_model(corrupt)

    def sample(self, *args, **options):
        groups, left = super().sample(*args, **options)
        self.sampled = list(groups)
        return groups, left

    def addresses(self):
        return [p.data_ptr() for _, p in self.trainer.named_parameters()]

    def shares(self):
        """Is every parameter of vLLM one of the trainer's, and the other way round?"""
        (theirs,) = self.engine.llm.apply_model(lambda model: [p.data_ptr() for p in model.parameters()])
        return sorted(theirs) == sorted(self.addresses())


def corrupt(model):
    """One weight matrix, off by a hundredth."""
    parameter = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    parameter.data = parameter.data * 1.01


if __name__ == "__main__":
    srpo.train.Run = ProbedRun
    cli.main()
