r"""Format, language mixing, length, and where the program is in a response."""

import subprocess
import sys

import pytest

from srpo.config import Overlong
from srpo.rewards.code import extract, grade
from srpo.rewards.format import well_formed
from srpo.rewards.language import mixing
from srpo.rewards.length import overlong


@pytest.mark.parametrize(("response", "good"), [
    ("thinking </think> <answer> 3 </answer>", True),           # the prompt ended with <think>
    ("<think>thinking</think><answer>3</answer>\n", True),
    ("<think>thinking</think>\n\n<answer>line\nline</answer>", True),
    ("thinking</think><answer></answer>", False),
    ("</think><answer>3</answer>", False),
    ("<think></think><answer>3</answer>", False),
    ("thinking<answer>3</answer>", False),
    ("thinking</think>3", False),
    ("thinking</think><answer>3", False),
    ("thinking</think> so <answer>3</answer>", False),
    ("thinking</think><answer>3</answer> done", False),
    ("a</think>b</think><answer>3</answer>", False),
    ("a<think>b</think><answer>3</answer>", False),
    ("<think><think>b</think><answer>3</answer>", False),
    ("a</think><answer>3</answer><answer>4</answer>", False),
    ("", False),
])
def test_think_answer(response, good):
    assert well_formed(response, "think_answer") is good


@pytest.mark.parametrize(("response", "good"), [
    ("so \\boxed{3}", True), ("<think>x</think>\\boxed{\\frac{1}{2}}", True), ("<think>\\boxed{3}</think> 3", False),
    ("so \\boxed{}", False), ("so \\boxed{3", False), ("3", False), ("<think>\\boxed{3}", False),
])
def test_boxed(response, good):
    assert well_formed(response, "boxed") is good


@pytest.mark.parametrize(("response", "style", "lenient"), [
    ("thinking</think>\nSo: <answer>3</answer> done", "think_answer", True),
    ("thinking</think><answer>3", "think_answer", True),          # cut off, or the closing tag was the stop string
    ("a</think><answer>3</answer><answer>4</answer>", "think_answer", True),
    ("<think>a<think>b</think>c</think><answer>3</answer>", "think_answer", True),
    ("thinking</think><answer> </answer>", "think_answer", False),
    ("thinking</think>3", "think_answer", False),
    ("thinking<answer>3</answer>", "think_answer", False),
    ("<answer>3</answer></think>", "think_answer", False),
    ("\\boxed{2}, so \\boxed{3}", "boxed", True),
    ("\\boxed{3}, so \\boxed{ }", "boxed", False),
])
def test_lenient_wants_an_answer_after_the_thinking_and_strict_nothing_else(response, style, lenient):
    assert well_formed(response, style, strict=False) is lenient
    assert not well_formed(response, style)


def test_format_is_quick_on_repeated_tags():
    for text in ("</think><answer>" * 20_000, "<answer>" * 40_000 + "</think>",
                 "a" * 200_000 + "</think>" + " " * 200_000 + "<answer>"):
        assert not well_formed(text, "think_answer")
        assert not well_formed(text, "think_answer", strict=False)


@pytest.mark.parametrize(("prompt", "response", "expected"), [
    ("What is it?", "It is three.", 0.0),
    ("What is it?", "三", 1.0),
    ("What is it?", "abc三四五", 0.5),
    ("这是什么 file", "这是 three", 0.0),                          # both scripts are the prompt's
    ("这是什么 x", "这是 three", 5 / 7),                           # "x" is no English
    ("三角形 ABC 的面积是多少？", "设 x 为边长，则 sin A = 1，由 AM-GM 得 x = 48。", 0.0),
    ("How many apples are left in the basket?",
     "So she sold five apples in April, 然后卖了一半, so two are left.", 6 / 44),
    ("这是什么", "这是三four", 4 / 7),
    ("Что это?", "Это три", 0.0),
    ("What is it?", "α + β = π, 𝑥 ∈ ℝ", 0.0),                    # notation
    ("这是什么", "答案是 $x + y$, \\(z\\) 和 \\frac{1}{2} `print(x)`\n```python\nabc\n```\n<answer>三</answer>", 0.0),
    ("What is it?", "ｆｕｌｌｗｉｄｔｈ", 0.0),                        # Latin letters in wide form
    ("1 + 1 = ?", "二", 0.0),                                    # a prompt without letters sets no language
    ("What is it?", "123 !?", 0.0),
    ("What is it?", "", 0.0),
    ("Combien de pommes reste-t-il ?", "Il reste donc trois pommes.", 0.0),
    ("How many apples are left in the basket?", "Il reste donc trois pommes dans le panier.", 1.0),
    ("How many apples are left in the basket?", "Entonces la respuesta final es tres.", 1.0),
    ("How many apples are left in the basket?", "Also ist die gesuchte Antwort drei.", 1.0),
    ("How many apples are left in the basket?", "So three are left. 三", 1 / 15),
    ("How many apples are left in the basket?",
     "There were five.\nWir haben also noch drei Äpfel.\n\nTherefore the final answer is three.", 25 / 68),
    ("How many apples are left in the basket?", "Also drei.", 0.0),   # too short to be sure
    ("How many apples are left in the basket?", "20 sections * 400 pounds/section = 8000 pounds", 0.0),
    ("How many apples are left in the basket?", "`return la_respuesta_final_es_tres` so it is three.", 0.0),
    ("Translate: il reste donc trois pommes dans le panier.\nHow many apples are left in the basket?",
     "There are three apples left. Il reste donc trois pommes.", 0.0),
    ("Сколько яблок осталось в корзине?", "Значит, в корзине осталось три яблока.", 0.0),
    ("篮子里还剩多少个苹果？", "所以篮子里还剩三个苹果。", 0.0),
])
def test_mixing(prompt, response, expected):
    assert mixing(prompt, response) == pytest.approx(expected)


def test_scripts_alone_need_no_language_model():
    code = ("import sys; from srpo.rewards.language import mixing; import srpo.rewards.worker;"
            "assert mixing('1 + 1 = ?', 'one two three four five') == 0; sys.exit('py3langid' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("tokens", "penalty"), [(0, 0.0), (80, 0.0), (90, 0.25), (100, 0.5), (120, 0.5)])
def test_overlong_rises_linearly_to_its_penalty(tokens, penalty):
    assert overlong(tokens, 100, Overlong(start=80, penalty=0.5)) == pytest.approx(penalty)


ADD = {"kind": "function", "entry_point": "add",
       "cases": [{"args": [1, 2], "expected": 3}, {"args": [2, 2], "expected": 4}]}
RIGHT = "def add(a, b):\n    return a + b"
NEWLINE = "\n"


@pytest.mark.parametrize(("response", "program"), [
    (f"Here:\n```python\n{RIGHT}\n```\nDone.", RIGHT),
    (f"```\nfirst\n```\nor\n```py\n{RIGHT}\n```", RIGHT),
    (f"```\nfirst\n```\n</think><answer>\n```python\n{RIGHT}\n```\n</answer>", RIGHT),
    (f"</think><answer>```python\n{RIGHT}\n```</answer>", RIGHT),
    (f"</think><answer>{RIGHT}</answer>", RIGHT),
    ("<think>```\nfirst\n```\n", None),
    ("```python\nunfinished", None),
    ("```\n\n```", None),
    ("no program", None),
    (f"~~~python\n{RIGHT}\n~~~", RIGHT),
    (f"1. So:\n   ```python\n   {RIGHT.replace(NEWLINE, NEWLINE + '   ')}\n   ```\n2. Done.", RIGHT),
    ("```python\nf(\n    ```\n    x\n    ```\n)\n```", "f(\n    ```\n    x\n    ```\n)"),
    ("````markdown\n```\nx\n```\n````", "```\nx\n```"),
    (f"```python\nforgotten\n\nBetter:\n```python\n{RIGHT}\n```", RIGHT),
    (f"```markdown\n```python\n{RIGHT}\n```\n```", RIGHT),
    (f"```python\n{RIGHT}\n```\nor\n```python\ncut of", RIGHT),
    (f"```python\r\n{RIGHT}\r\n```\r\n", RIGHT + "\r"),
    (f"``` {{.python .numberLines}}\n{RIGHT}\n``` \n", RIGHT),
    ("Call `f` or ```f()``` as in\n```\nx\n```", "x"),
    ("<answer>1</answer></answer>", "1"),
    ("<answer>1</answer><answer>2</answer><answer>3", "2"),
])
def test_where_the_program_is(response, program):
    assert extract(response) == program


@pytest.mark.parametrize("piece", ["a<answer>```\n", "<answer>", "<answer>```", "```\n", "```python\n", "~~~\n```\n"])
def test_the_program_is_found_in_linear_time(piece):
    """Half a megabyte; where each opening had all that follows searched for its end, it took minutes."""
    extract(piece * (500_000 // len(piece)))


def test_code_is_all_or_nothing_or_a_fraction():
    assert grade(f"```\n{RIGHT}\n```", ADD).correct == 1.0
    half = grade("```\ndef add(a, b):\n    return 3\n```", ADD)
    assert (half.correct, half.reason) == (0.0, "case 1: wrong answer")
    assert grade("```\ndef add(a, b):\n    return 3\n```", ADD, fraction=True).correct == 0.5
    assert grade("nothing", ADD).reason == "no program"
