"""From the field names that people already have to rows: each layout is known by the fields it cannot lack.

What a problem does not say but its tests need is added to the prompt: the function's name, for MBPP the first of its
tests (the others stay hidden). LeetCode's methods of `class Solution` become plain functions.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import pickle
import re
import zlib
from collections.abc import Callable
from typing import Any

from srpo.errors import UserError
from srpo.prepare.rows import Row
from srpo.rewards.extract import boxes

Record = dict[str, Any]


def row(record: Record, where: str, name: str) -> Row:
    """The row of a record; `name` makes an id when the record has none. Raises UserError naming file and line."""
    for layout, (fields, convert) in LAYOUTS.items():
        if all(any(f in record for f in alternatives.split("|")) for alternatives in fields):
            try:
                found = convert(record)
                if not isinstance(found.solution, str | None):
                    raise UserError(f"the solution must be text, found {type(found.solution).__name__}")
            except UserError as e:
                raise UserError(f"{where}: read as {layout}: {e}") from None
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:  # not what they seem
                raise UserError(f"{where}: read as {layout}: a field is not as that layout has it: "
                                f"{type(e).__name__}: {e}") from None
            found.id = found.id or name
            found.source, found.where = found.source or layout, where
            return found
    raise UserError(f"{where}: its fields ({', '.join(sorted(record))}) are of no known layout; rename them to id, "
                    "domain, prompt and answer or tests")


# -- one function a layout ------------------------------------------------------------------------------------------


def _own(r: Record) -> Row:
    tests = r.get("tests")
    solution = _text(r, "solution") or _text(r, "response")
    return Row(_text(r, "id"), _text(r, "domain"), _text(r, "prompt"), _text(r, "answer") or None,
               _tests(tests) if tests else None, solution or None)


def _verl(r: Record) -> Row:
    truth = r["reward_model"].get("ground_truth") if isinstance(r["reward_model"], dict) else None
    if truth is None:
        raise UserError("field 'reward_model' has no 'ground_truth'")
    extra = r.get("extra_info") or {}
    prompt, source = _prompt(r), _text(r, "data_source")
    id = f"{source}/{extra['split']}/{extra['index']}" if "split" in extra and "index" in extra else ""
    if r.get("ability") == "code" or (isinstance(truth, str) and re.match(r'\s*[\[{]\s*[\[{"]', truth)):
        return Row(id, "code", prompt, tests=_tests(truth), source=source)
    solution = extra.get("answer")  # GSM8K's worked one; elsewhere it may be anything
    return Row(id, "math", prompt, _answer(truth), solution=solution if isinstance(solution, str) else None,
               source=source)


def _humaneval(r: Record) -> Row:
    prompt, name = _text(r, "prompt"), _text(r, "entry_point")
    code = f"{_helpers(prompt, name)}{_text(r, 'test')}\n\ncheck({name})\n"
    return Row(_text(r, "task_id"), "code", f"Complete this function.\n\n```python\n{prompt.rstrip()}\n```",
               tests={"kind": "assert", "entry_point": name, "code": code},
               solution=prompt + _text(r, "canonical_solution"))


def _mbpp(r: Record) -> Row:
    asserts = list(r["test_list"]) + list(r.get("challenge_test_list") or [])
    if not all(isinstance(test, str) for test in asserts):
        raise UserError("field 'test_list' must be a list of texts")
    setup = [_text(r, "test_setup_code"), *(r.get("test_imports") or [])]
    code = "\n".join(line.replace("\r\n", "\n") for line in [*setup, *asserts] if line)
    question, solution = (_text(r, "text") or _text(r, "prompt")).strip(), _text(r, "code")
    if name := _called(asserts[0], solution) if asserts else None:
        question += f"\n\nThe function is called `{name}`. It must pass:\n\n```python\n{asserts[0].strip()}\n```"
    return Row(f"mbpp/{_text(r, 'task_id')}", "code", question, solution=solution,
               tests={"kind": "assert", "entry_point": name, "code": code} if name else None)


def _apps(r: Record) -> Row:
    starter = _text(r, "starter_code")
    value = r["input_output"]
    tests = _tests(value) if value else None
    solutions = _loads(r["solutions"]) if r.get("solutions") else []
    solution = solutions[0] if solutions else None
    if tests and tests["kind"] == "function":
        solution = solution and _as_function(solution, tests["entry_point"])
    id = _text(r, "problem_id") or _text(r, "id")
    return Row(f"apps/{id}" if id else "", "code", _with_starter(_text(r, "question"), starter, tests), tests=tests,
               solution=solution)


def _livecodebench(r: Record) -> Row:
    cases = _cases(r["public_test_cases"]) + _cases(r.get("private_test_cases") or "[]")
    metadata = _loads(r.get("metadata") or "{}")
    if name := metadata.get("func_name"):
        tests = {"kind": "function", "entry_point": name.split(".")[-1], "cases": [
            {"args": [_loads(line) for line in c["input"].split("\n") if line], "expected": _loads(c["output"])}
            for c in cases]}
    else:
        tests = {"kind": "stdio", "cases": [{"input": c["input"], "output": c["output"]} for c in cases]}
    prompt = _with_starter(_text(r, "question_content"), _text(r, "starter_code"), tests)
    return Row(_text(r, "question_id"), "code", prompt, tests=tests if cases else None)


def _math(r: Record) -> Row:
    """MATH, TRL and the like: the answer on its own, or in the solution's last box, or after its ####."""
    question = next(_text(r, f) if f != "prompt" else _prompt(r) for f in ("problem", "question", "prompt") if f in r)
    given, solution = r.get("answer"), _text(r, "solution") or None
    if isinstance(given, str) and (short := final(given)):
        given, solution = short, solution or given
    elif given is None and solution:
        given = final(solution) or (solution if len(solution) < 100 else None)
    id = _text(r, "unique_id") or _text(r, "id")
    return Row(id, "math", question, _answer(given), solution=solution)


LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[Record], Row]]] = {
    "srpo": (("id", "domain", "prompt"), _own),
    "verl": (("data_source", "prompt", "reward_model"), _verl),
    "humaneval": (("prompt", "entry_point", "canonical_solution", "test"), _humaneval),
    "mbpp": (("text|prompt", "code", "test_list"), _mbpp),
    "livecodebench": (("question_content", "public_test_cases"), _livecodebench),
    "apps": (("question", "input_output"), _apps),
    "math": (("problem", "answer|solution"), _math),
    "gsm8k": (("question", "answer"), _math),
    "trl": (("prompt", "answer|solution"), _math),
}
"""Required fields, `|` between alternatives; the first layout whose fields are all there is taken."""


# -- fields -----------------------------------------------------------------------------------------------------------


def _text(record: Record, key: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"field {key!r} must be text, found {type(value).__name__}")
    return value


def _prompt(record: Record) -> str:
    """A text, or the last user message of a conversation."""
    if not isinstance(record["prompt"], list):
        return _text(record, "prompt")
    said = [m.get("content") for m in record["prompt"] if isinstance(m, dict) and m.get("role") == "user"]
    if not said or not isinstance(said[-1], str):
        raise UserError("field 'prompt' holds no message of the user")
    return said[-1]


def _answer(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or isinstance(value, int | float | str):
        return None if value is None else str(value).strip()
    raise UserError(f"the answer must be text or a number, found {type(value).__name__}")


def final(solution: Any) -> str | None:
    """The answer that a worked solution ends with: what follows ####, or its last box."""
    if not isinstance(solution, str):
        return None
    if "####" in solution:
        return solution.rsplit("####", 1)[1].strip()
    found = boxes(solution)
    return found[-1][2].strip() or None if found else None


# -- tests and programs -----------------------------------------------------------------------------------------------


def _loads(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as e:
        raise UserError(f"not valid JSON in {value[:40]!r}: {e.msg} at column {e.colno}") from None


def _tests(value: Any) -> dict[str, Any]:
    """Ours as they are; APPS's {inputs, outputs, fn_name}; a list of {input, output}."""
    tests = _loads(value)
    if isinstance(tests, list) and all(isinstance(c, dict) and {"input", "output"} <= set(c) for c in tests):
        return {"kind": "stdio", "cases": [{"input": c["input"], "output": c["output"]} for c in tests]}
    if isinstance(tests, dict) and "kind" in tests:
        return tests
    if not isinstance(tests, dict) or not {"inputs", "outputs"} <= set(tests):
        raise UserError("tests are neither {kind, ...} nor {inputs, outputs}")
    inputs, outputs = tests["inputs"], tests["outputs"]
    if len(inputs) != len(outputs):
        raise UserError(f"tests have {len(inputs)} inputs and {len(outputs)} outputs")
    if name := tests.get("fn_name"):
        wrapped = all(isinstance(o, list) and len(o) == 1 for o in outputs)
        return {"kind": "function", "entry_point": name, "cases": [
            {"args": i, "expected": o[0] if wrapped else o} for i, o in zip(inputs, outputs, strict=True)]}
    return {"kind": "stdio", "cases": [
        {"input": _joined(i), "output": _joined(o)} for i, o in zip(inputs, outputs, strict=True)]}


def _joined(lines: Any) -> str:
    return "\n".join(map(str, lines)) if isinstance(lines, list) else str(lines)


class _Plain(pickle.Unpickler):
    """Unpickles text and nothing else: whatever would import a name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise UserError(f"private_test_cases: refuses to load {module}.{name}")


def _cases(value: Any) -> list[dict[str, str]]:
    """LiveCodeBench's cases: a JSON list, or the same as text, pickled, compressed, in base 64."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        try:
            value = _Plain(io.BytesIO(zlib.decompress(base64.b64decode(value)))).load()
        except (ValueError, zlib.error, pickle.UnpicklingError, EOFError) as e:
            raise UserError(f"private_test_cases: {e}") from None
    cases = _loads(value)
    if not isinstance(cases, list) or not all(isinstance(c, dict) and {"input", "output"} <= set(c) for c in cases):
        raise UserError("test cases must be a list of {input, output}")
    return cases


def _called(test: str, program: str) -> str | None:
    """The function of the program that a test calls first."""
    try:
        defined = {n.name for n in ast.parse(program.lstrip("\ufeff")).body if isinstance(n, ast.FunctionDef)}
        calls = [n.func.id for n in ast.walk(ast.parse(test.strip()))
                 if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    except (SyntaxError, ValueError, RecursionError):
        return None
    return next((name for name in calls if name in defined), None)


def _helpers(prompt: str, name: str) -> str:
    """Functions that a HumanEval prompt defines before the one asked for: its tests may use them."""
    before = prompt[:prompt.rindex(f"def {name}(")] if f"def {name}(" in prompt else ""
    return before if "def " in before else ""


def _with_starter(question: str, starter: str, tests: dict[str, Any] | None) -> str:
    if not tests or tests["kind"] != "function":
        return question
    signature = re.sub(r"(?m)^class Solution.*\n?", "", starter)
    signature = re.sub(r"(?m)^\s+def ", "def ", re.sub(r"\(\s*self\s*,?\s*", "(", signature)).strip()
    return f"{question}\n\nWrite this function.\n\n```python\n{signature or 'def ' + tests['entry_point']}\n```"


def _as_function(program: str, name: str) -> str:
    if not re.search(r"(?m)^class Solution\b", program):
        return program
    return f"from typing import *\n{program}\n\n\ndef {name}(*args):\n    return Solution().{name}(*args)\n"
