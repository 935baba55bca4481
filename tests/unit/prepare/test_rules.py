"""Every rule and cleaner over its own examples."""

from __future__ import annotations

import pytest

from srpo.prepare import clean, code_rules, math_rules
from srpo.prepare.rows import Row
from srpo.prepare.rules import Example, Rule

RULES = math_rules.RULES + code_rules.RULES


def row(rule: Rule, example: Example) -> Row:
    fields = {"prompt": example} if isinstance(example, str) else example
    defaults = {"prompt": "What is it?", "answer": "1"} if rule.domain == "math" else {"prompt": "Do it."}
    return Row(id="x", domain=rule.domain, **(defaults | fields))


@pytest.mark.parametrize(("rule", "example"), [(r, e) for r in RULES for e in r.kept],
                         ids=lambda x: getattr(x, "name", str(x)[:40]))
def test_keeps(rule: Rule, example: Example):
    assert not rule.drops(row(rule, example))


@pytest.mark.parametrize(("rule", "example"), [(r, e) for r in RULES for e in r.dropped],
                         ids=lambda x: getattr(x, "name", str(x)[:40]))
def test_drops(rule: Rule, example: Example):
    assert rule.drops(row(rule, example))


@pytest.mark.parametrize("text", ["how many ", "|a|", " ", "(a) x ", "what is it, and ", "1\n"])
def test_long_texts_cost_no_more_than_their_length(text: str):
    """Patterns that backtrack take minutes here, or for ever."""
    for rule in math_rules.RULES:
        rule.drops(Row("x", "math", text * 4000, answer="1"))


def test_rules_have_examples_of_both_kinds_and_names_of_their_own():
    assert all(r.kept and r.dropped for r in RULES)
    assert len({r.name for r in RULES}) == len(RULES)


@pytest.mark.parametrize(("cleaner", "before", "after"),
                         [(c, *example) for c in clean.CLEANERS for example in c.examples])
def test_cleaner(cleaner: clean.Cleaner, before: str, after: str):
    assert cleaner.clean(before) == after
    assert cleaner.clean(after) == after


@pytest.mark.parametrize(("before", "after"), clean.ANSWERS)
def test_answer(before: str, after: str):
    assert clean.clean_answer(before) == after


def test_code_blocks_are_not_cleaned():
    prompt = "See https://a.org/b.\n\n```python\nx = '<b>' # https://a.org\n```"
    assert clean.clean(Row("x", "code", prompt)).prompt == "See.\n\n```python\nx = '<b>' # https://a.org\n```"
