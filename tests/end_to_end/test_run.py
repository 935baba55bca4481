"""A whole run on two data-parallel ranks: what it leaves behind, and what its export is worth."""

from __future__ import annotations

import json
import re
import sqlite3

import pytest
import yaml
from launches import HERE, Launch, metrics, query, weights

from srpo import samples

ALWAYS = {
    "step", "epoch", "stage", "reward/mean", "reward/std", "reward/parts/accuracy", "reward/parts/format",
    "length/mean", "groups/zero_advantage", "groups/all_correct", "groups/all_wrong", "loss/policy", "policy/entropy",
    "policy/clip_frac", "grad/norm", "optimizer/lr", "rollout/tokens_per_s", "rollout/logprob_diff_mean",
    "rollout/logprob_diff_max", "train/tokens_per_s", "weights/aliased_bytes", "weights/moved_bytes", "time/rollout",
    "time/reward", "time/update", "time/sync", "time/step"}
OF_A_DOMAIN = ("reward", "accuracy", "length")
DOMAINS = {"sums": {"math"}, "programs": {"math", "code"}}


def test_run_folder(base, world):
    names = {path.name for path in base.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "ledger.sqlite", "checkpoints", "tb", "hf"} <= names
    assert any((base / "tb").iterdir())
    last = metrics(base)[-1]["step"]
    assert (base / "checkpoints" / "latest").read_text() == f"step-{last:08d}"
    complete = {path.name for path in (base / "checkpoints").iterdir()}
    assert complete == {"latest", "step-00000004", "step-00000006", f"step-{last:08d}"}  # every 2, keep 3
    resolved = yaml.safe_load((base / "config.yaml").read_text())
    asked = yaml.safe_load((world.folder / "base.yaml").read_text())
    assert resolved["optimizer"]["lr"] == asked["optimizer"]["lr"] and resolved["optimizer"]["beta2"] == 0.95


def test_metrics_have_every_name(base):
    first, *steps = metrics(base)
    assert first.keys() == {"step", "time/evaluation", "eval/math", "eval/code"} and first["step"] == 0
    assert [m["step"] for m in steps] == list(range(1, len(steps) + 1))
    took_part = query(base, "SELECT step, group_concat(DISTINCT domain) FROM rollouts GROUP BY step ORDER BY step")
    for m, (step, domains) in zip(steps, took_part, strict=True):
        assert m["step"] == step and m.keys() >= ALWAYS
        assert {k for k in m if k.endswith(("/math", "/code")) and not k.startswith("eval/")} == {
            f"{part}/{domain}" for part in OF_A_DOMAIN for domain in domains.split(",")}
        assert set(domains.split(",")) <= DOMAINS[m["stage"]]
    assert {"eval/math", "eval/code", "time/evaluation"} <= steps[-1].keys()
    saved = [m["step"] for m in steps if "time/checkpoint" in m]
    assert saved == [m["step"] for m in steps if m["step"] % 2 == 1], "the one before each: after steps 0, 2, 4, ..."
    assert {m["stage"] for m in steps} == {"sums", "programs"}
    assert any("accuracy/code" in m for m in steps)


def test_weights_are_shared_and_stay_the_same(base, world):
    printed = (world.folder / "base.log").read_text()
    size = sum(int(n) for n in re.findall(r"aliased (\d+) tensors \([\d.]+ GiB\), moved 0 tensors", printed))
    assert size == 30  # 4 layers of 7 (two norms, qkv and its bias, o, gate_up, down), embedding, last norm
    for m in metrics(base)[1:]:
        assert m["weights/moved_bytes"] == 0 and m["weights/aliased_bytes"] > 3_000_000
        assert m["rollout/logprob_diff_max"] < 1e-4


def test_ledger(base):
    db = sqlite3.connect(base / "ledger.sqlite")
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid")]
    columns = {t: " ".join(row[1] for row in db.execute(f"PRAGMA table_info({t})")) for t in tables}
    db.close()
    assert columns == columns | {
        "rollouts": "epoch step stage prompt_id sample domain correct reward tokens truncated",
        "epochs": "epoch stage prompts kept dropped",
        "events": "step kind detail"}
    for m in metrics(base)[1:]:
        ((accuracy, reward, tokens),) = query(base, "SELECT AVG(CASE WHEN domain = 'math' THEN correct END), "
                                              f"AVG(reward), AVG(tokens) FROM rollouts WHERE step = {m['step']}")
        assert [m.get("accuracy/math"), m["reward/mean"], m["length/mean"]] == pytest.approx([accuracy, reward, tokens])


def test_every_response_of_these_small_steps_is_stored(base):
    columns = ["step", "epoch", "stage", "prompt_id", "sample", "domain", "correct", "reward", "tokens", "truncated"]
    stored = [row for batch in samples.read_all(base) for row in batch.to_pylist()]
    rows = query(base, f"SELECT {', '.join(columns)} FROM rollouts ORDER BY rowid")
    assert [tuple(row[c] for c in columns) for row in stored] == rows
    for row in stored:
        assert row["prompt"].endswith("<think>") and not row["failed"]
        assert sum(json.loads(row["parts"]).values()) == row["reward"]
    right = [row for row in stored if row["domain"] == "math" and row["correct"] == 1]
    assert right and all("</think>" in row["response"] and row["reason"] == "correct" for row in right)


def test_epochs_are_resampled_in_both_stages(base):
    epochs = query(base, "SELECT epoch, stage, prompts, kept, dropped FROM epochs")
    assert [(e, stage) for e, stage, *_ in epochs] == [(1, "sums"), (2, "sums"), (3, "programs"), (4, "programs")]
    gone: set[str] = set()
    for epoch, _, prompts, kept, dropped in epochs:
        seen = query(base, "SELECT prompt_id, AVG(correct >= 1), COUNT(*) FROM rollouts "
                           f"WHERE epoch = {epoch} GROUP BY prompt_id")
        assert prompts == kept + dropped == len(seen) and all(count == 4 for *_, count in seen)
        assert not gone & {prompt for prompt, *_ in seen}
        mastered = {prompt for prompt, rate, _ in seen if rate >= 0.75}
        assert dropped == len(mastered)
        gone |= mastered
    assert gone
    assert [detail for kind, detail in query(base, "SELECT kind, detail FROM events") if kind == "stage"] == [
        "sums -> programs: 2 epochs", "programs -> end of the run: 2 epochs"]


def test_export_answers_in_transformers_and_in_vllm(base, world):
    prompts = world.folder / "data" / "eval.jsonl"
    launch = Launch(HERE / "answers.py", base / "hf", prompts, ranks=1, folder=world.folder)
    transformers, vllm = json.loads(launch.succeed().splitlines()[-1])
    assert transformers == vllm and all(transformers)


def test_export_of_the_last_checkpoint_is_the_final_export(base, world):
    target = world.folder / "exported"
    Launch("-m", "srpo", "export", base, target, ranks=1, folder=world.folder).succeed()
    assert weights(target) == weights(base / "hf") != weights(base / "warm")
    companions = {path.name for path in (base / "hf").iterdir()}
    assert {path.name for path in target.iterdir()} == companions >= {"config.json", "tokenizer.json"}
