"""The same greedy answers from an exported model by transformers and by vLLM as anybody uses them.

    python answers.py DIRECTORY PROMPTS.jsonl   prints one line of JSON: [[tokens of transformers], [tokens of vLLM]]
"""

import json
import os
import sys
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")

import torch  # noqa: E402 (vLLM reads its environment when it is imported)
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

LENGTH = 24


def main(directory: str, data: str) -> None:
    prompts = [json.loads(line)["prompt"] for line in Path(data).read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)
    ours = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LENGTH, do_sample=False)
        ours.append(out[0, ids.shape[1]:].tolist())
    llm = LLM(directory, dtype="float32", enforce_eager=True, max_model_len=128, kv_cache_memory_bytes=2**25)
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=LENGTH), use_tqdm=False)
    print(json.dumps([ours, [list(o.outputs[0].token_ids) for o in outputs]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
