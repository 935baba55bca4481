"""Prompts that are left out for their length, held-out ones too; and responses too short for an answer."""

from __future__ import annotations

import json

from launches import query
from world import CODE, MATHS, World


def test_long_prompts_are_left_out_and_a_step_without_answers_is_told_of(world: World) -> None:
    """The programs' prompts are the longer ones."""
    rows = [json.loads(line) for line in (world.folder / "data" / "eval.jsonl").read_text().splitlines()]
    programs = CODE + sum(row["domain"] == "code" for row in rows)
    sections = {
        "data": {"max_prompt_tokens": 8, "overlong": "drop"}, "rollout": {"max_response_tokens": 4},
        "warm_start": None, "stages": [{"name": "sums", "domains": ["math"], "until": "steps", "steps": 2}]}
    log = world.train("overlong", ranks=1, **sections).succeed()
    run = world.folder / "overlong"
    detail = f"{programs} of {MATHS + CODE + len(rows)} prompts are left out"
    (event,) = query(run, "SELECT step, kind, detail FROM events WHERE kind = 'overlong'")
    assert event[:2] == (0, "overlong") and event[2].startswith(detail) and detail in log
    asked = query(run, "SELECT DISTINCT prompt_id FROM rollouts")
    assert {prompt for (prompt,) in asked} == {f"math-{i}" for i in range(MATHS)}
    evaluated = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert "eval/math" in evaluated and "eval/code" not in evaluated
    assert log.count("no response has a final answer") == 1
    assert "reward.style = 'think_answer'" in log and "data.template = 'plain'" in log
