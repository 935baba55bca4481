"""The file of patterns: what a keyword becomes, and what is said of a file that is wrong."""

from __future__ import annotations

import pyarrow as pa
import pytest

from srpo.analysis.detect import contains
from srpo.analysis.patterns import DEFAULT, Patterns, expression
from srpo.errors import UserError


@pytest.mark.parametrize(("keyword", "text", "found"), [
    ("wait", "Wait, no", True), ("wait", "awaiting", False), ("wait", "the waiter", False),
    ("check again", "check\n  again", True), ("check again", "checkagain", False),
    ("that's wrong", "that\u2019s wrong", True), ("that's wrong", "That's wrong", True),
    ("wait", "再wait一下", True), ("等等[，,]", "等等，不对", True), ("等等[，,]", "尺子等等共12元", False),
    (r"h+m+", "Hmmm", True), (r"h+m+", "rhythm", False), (r"verif\w*", "verifying", True),
    (r"^def \w+\(", "text\ndef f(x):", True), (r"^def \w+\(", "the def f(x)", False),
    (r"so\s", "so we", True), ("a|b", "xa", False), ("a|b", "x b", True)])
def test_a_keyword(keyword, text, found):
    assert contains(pa.array([text]), expression(keyword)).tolist() == [found]


def test_the_packages_own_patterns():
    patterns = Patterns.load()
    assert patterns.file == DEFAULT
    assert list(patterns.patterns) == ["recheck", "hesitation", "exploration", "code", "verification", "repetition",
                                       "language_mixing"]
    assert patterns.keywords("verification") == patterns.keywords("recheck") + patterns.keywords("exploration")


@pytest.mark.parametrize(("text", "said"), [
    ("doubt:\n  about: x\n  keywords: ['wait(']", r"doubt.keywords.0 = 'wait\(': not a regular .*: missing \)"),
    ("doubt:\n  about: x\n  keywords: [a, '(?=b)']", "doubt.keywords.1 = .*no look-around"),
    ("doubt:\n  about: x\n  keywords: ['a*']", "doubt.keywords.0 = 'a\\*': matches the empty text"),
    ("doubt:\n  about: x\n  keywords: [(hm|hmm)]", r"doubt.keywords.0 = .*: has a group that captures; write \(\?:"),
    ("doubt:\n  about: x\n  keywords: ['(?P<m>hmm)']", "doubt.keywords.0 = .*: has a group that captures"),
    ("doubt:\n  about: x\n  keyword: [a]", r"doubt.keyword = \['a'\]: extra inputs are not permitted"),
    ("doubt:\n  about: x\n  keywords: wait", "doubt.keywords = 'wait': input should be a valid list"),
    ("doubt:\n  about: x\n  keywords: []", r"doubt.keywords = \[\]: list should have at least 1 item"),
    ("doubt:\n  about: x\n  keywords: [no, yes]", "doubt.keywords.0 = False: input should be a valid string"),
    ("doubt:\n  keywords: [a]", "doubt.about = .*: field required"),
    ("doubt:\n  about: x", "doubt: needs one of keywords, after_answer, repeated, mixing, and one alone"),
    ("doubt:\n  about: x\n  mixing: 0.1\n  repeated: 0.5", "doubt: needs one of .*, and one alone"),
    ("loop:\n  about: x\n  repeated: 50", "loop.repeated = 50: input should be less than or equal to 1"),
    ("again:\n  about: x\n  after_answer: [doubt]", "again.after_answer.0 = 'doubt': is no pattern with keywords"),
    ("doubt: wait", "doubt = 'wait': input should be a valid dictionary"),
    ("a: {about: x, mixing: 0.1}\na: {about: x, mixing: 0.1}", "not valid YAML: duplicate key 'a'"),
    ("doubt: [", "not valid YAML"), ("- wait", "expected a mapping of patterns by name, found list"),
    ("", "expected a mapping of patterns by name, found NoneType"), (b"\xff\xfe\xff", "cannot be read as text")])
def test_a_wrong_file_is_told_in_one_line(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=f"^{file}: .*{said}") as error:
        Patterns.load(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(UserError, match="no such file of patterns; .*patterns.yaml is one to copy"):
        Patterns.load(tmp_path / "none.yaml")
