r"""Which maths problems cannot be rewarded: several questions in one, proofs, pictures, answers nobody can check.

Words are matched whole and in context: "figure" is also what one does with a sum, "improve" is no proof.
"""

from __future__ import annotations

import re

from srpo.errors import UserError
from srpo.prepare.rows import Row
from srpo.prepare.rules import Rule, rule
from srpo.rewards import math
from srpo.rewards.extract import MAX_ANSWER

_PART = r"(?:\(\s*{0}\s*\)|(?:^|(?<=[\n.?!;:$]))\s*\\?(?:textbf\{{|\*\*)?\(?{0}[).]\s)"
_REQUEST = (r"\b(?:find|determine|compute|calculate|evaluate|express|simplify|solve|give|what|which|"
            r"how (?:many|much|long|far|often|old|big|large|tall|fast))\b")


@rule("math", keeps=[
    "Point $P$ is on line (a) of the plane. What is its slope?",
    "Which is larger? (A) 2 (B) 3 (C) 4",
    "Let f(a) = 2a and g(b) = 3b. Find f(g(1)).",
    "The vertices are $(a)$, $(b)$ and $(c)$; find the sum of their abscissas.",
    "How many apples? He eats (1) apple and (2) pears.",
    "What is the least $n$ such that:\na) When divided by 2, it leaves 1.\nb) When divided by 3, it leaves 2.",
    "Part A of the course is 3 miles. How long is the whole?",
    "Mary has twice as many as Al. Does she have more than Bo? If so, by how much does she have more?",
], drops=[
    "Let $f(x)=x^2$. (a) Find $f'(x)$. (b) Find the tangent at $x=1$.",
    "Consider the circle.\n(1) Find its radius;\n(2) Find its area.",
    "1. Compute $2+2$.\n2. Compute $3+3$.",
    "i) Find x. ii) Find y.",
    "Part (a): find n. Part (b): find m.",
    "How many apples does Ann have? How many apples does Bob have?",
])
def multi_part(row: Row) -> bool:
    """Labelled parts that each ask something, or two questions of the same kind: the reference answers one."""
    for labels in (("a", "b"), ("1", "2"), ("i", "ii"), ("I", "II")):
        marks = [re.search(_PART.format(label), row.prompt, re.MULTILINE) for label in labels]
        if marks[0] and marks[1] and marks[0].end() <= marks[1].start():
            first, second = row.prompt[marks[0].end():marks[1].start()], row.prompt[marks[1].end():]
            if re.match(rf"\s*\W*{_REQUEST}", first, re.I) and re.match(rf"\s*\W*{_REQUEST}", second, re.I):
                return True
    if re.search(r"\bpart\s*\(?a\)?\s*:.*\bpart\s*\(?b\)?\s*:", row.prompt, re.I | re.DOTALL):
        return True
    asked = re.findall(r"(how many|how much|what is|what are|find)\b[^.?]*\?", row.prompt, re.I)
    return len(asked) > 1 and len({a.lower() for a in asked}) < len(asked)


@rule("math", keeps=[
    "How much did his time improve?",
    "To prove he is fast, Sam runs 3 miles in 20 minutes. What is his speed?",
    "Prove-It Inc. sells 3 books at $5. How much does it earn?",
    "Show that $x > 0$, then find the least $x$.",
    "The proof of this whiskey is 80. What is the percentage of alcohol?",
    "A show that lasts 2 hours starts at 7. When does it end?",
    "It can be shown that $n^2+n$ is even. What is the largest such $n$ below 5?",
], drops=[
    "Prove that there are infinitely many primes.",
    "Let $n$ be odd. Show that $n^2 - 1$ is divisible by 8.",
    "Show there is no integer $x$ with $x^2 = 2$.",
    "Let $a, b > 0$. Prove: $a + b \\ge 2\\sqrt{ab}$.",
    "Demonstrate that the sum converges.",
    {"prompt": "What about triangle ABC?", "answer": "proof"},
])
def proof(row: Row) -> bool:
    """Asks for a proof and for nothing else."""
    if re.fullmatch(r"(?:see )?(?:the )?(?:proof|proved|q\.?e\.?d\.?|see solution)", (row.answer or "").strip(), re.I):
        return True
    asked = re.search(r"(?:^|[.;:,!?$]\s+|\n\s*|(?<=then )|(?<=please ))(?:prove|show|demonstrate)\b"
                      r"(?:\s+(?:that|there|if|the|why|whether)\b|\s*[:,$\\])", row.prompt, re.I)
    return bool(asked and not re.search(_REQUEST, row.prompt[asked.end():], re.I) and "?" not in row.prompt)


@rule("math", keeps=[
    "Can you figure out how many apples are left?",
    "Write a three-digit figure whose digits add up to 7.",
    "What is the graph of $y = x^2$'s lowest point?",
    "He took 3 pictures and framed 2. How many are not framed?",
    "A picture frame is 3 by 4 inches. What is its area?",
    "Six-figure salaries are paid to 3 men; what is the least sum?",
    "Shown below are rows 1 and 2 of a triangle.\n\\begin{array}{cc} 1 & \\\\ 1 & 1 \\end{array}\nWhat is row 5's sum?",
    "The first numbers of an arrangement are shown below: 2, 2, 4, 4, 4. What is the next?",
    "The chart below gives distances.\n\\begin{tabular}{c|c} 1 & 2 \\end{tabular}\nWhat is the least?",
    "As shown by Euler, the sum converges. What is its integer part?",
], drops=[
    "In the figure, $AB = 3$. Find $BC$.",
    "What is the area of the shaded region?\n\n[asy]\ndraw((0,0)--(1,1));\n[/asy]",
    "![](image) Find x.",
    "The graph of $f$ is shown below. What is $f(2)$?",
    "As shown, the square has side 2. Find the shaded area.",
    "Refer to the diagram below. How many squares are there?",
    "Find $x$ in the triangle pictured at right.",
    "\\includegraphics[width=3cm]{a.png} What is the angle?",
    "Consider the accompanying figure. How long is AD?",
    "The figure shows a square. What is its side?",
])
def needs_image(row: Row) -> bool:
    """Refers to a drawing that the text does not contain, or contains it as drawing code."""
    if _CODE.search(row.prompt):
        return True
    return bool(_IMAGE.search(_WRITTEN.sub("", row.prompt)) and not _TABULAR.search(row.prompt))


_DRAWING = r"(?:figure|diagram|picture|graph|drawing|image|illustration|sketch|chart|grid|number\ line)s?"
_CODE = re.compile(r"\[/?asy\]|!\[|\\includegraphics|\\begin\{tikzpicture\}|<img\b", re.IGNORECASE)
_WRITTEN = re.compile(r"\b(?:numbers?|rows?|terms?|patterns?|sequences?|equations?|letters?|lists?|conditions?)\b"
                      r"[^.?!]{0,60}\b(?:shown|given|illustrated)? ?(?:above|below)\b", re.IGNORECASE)
"""What is shown in words and figures."""
_IMAGE = re.compile(rf"""
      \b(?:in|from|on|to)\ the\ (?:(?:above|following|adjoining|accompanying|given|attached|next)\s+)?
      (?:figure|diagram|illustration)s?\b (?!\s+(?:skat|out|eight))
    | \b(?:accompanying|adjoining|attached|above|following)\ {_DRAWING}\b
    | \b{_DRAWING}\s* (?:\([^()]*\)\s*)? (?:(?:is|are)\s+)? (?:shown|given|drawn|pictured|depicted)?\s*
      (?:here|above|below|at\ (?:the\ )?(?:right|left)|to\ the\ (?:right|left)) (?![- ]average)\b
    | \b{_DRAWING}\b [^.?!]{{0,60}} \b(?:is|are)\ (?:shown|pictured|depicted)\b
    | \b(?:figure|diagram|picture|illustration)\ (?:shows|depicts)\b
    | \b(?:shown|pictured|drawn|depicted|illustrated)
      \ (?:here|above|below|at\ (?:the\ )?right|to\ the\ right|in\ the\ (?:figure|diagram))\b
    | \bas\ (?:shown|pictured|illustrated)\b (?!\s+by\b)
    | \bshaded\ (?:region|area|part|portion|square|triangle)s?\b [^.]* \b(?:shown|below|above)\b
    """, re.IGNORECASE | re.VERBOSE)


@rule("math", keeps=[
    "Alice waits table 4 and earns $20. What are her tips?",
    "A table has 4 legs. How many legs have 3 tables?",
    "The table is 3 feet below the lamp. How high is the lamp?",
    "The table shows sales.\n\n\\begin{tabular}{c|c} 1 & 2 \\\\ \\end{tabular}\n\nWhat is the total?",
    "Use the table below.\n\n| day | sold |\n| --- | --- |\n| 1 | 5 |\n\nHow many were sold?",
    "$\\begin{array}{c} 1 \\\\ 2 \\end{array}$ The table above is read downwards. What is next?",
], drops=[
    "According to the table below, how many were sold?",
    "The following table gives the ages of five men. What is the mean?",
    "The table shows the sales of a week. What is the total?",
    "Use the table to find the mean.",
])
def needs_table(row: Row) -> bool:
    """Refers to a table of data that the text does not contain."""
    return bool(_TABLE.search(row.prompt) and not _TABULAR.search(row.prompt))


_TABLE = re.compile(r"""
      \b(?:following|accompanying|above|given)\ table\b
    | \btables?\ (?:shown\ |given\ )?(?:above|below)(?!\s+(?:the|a|his|her)\b)
    | \btables?\ (?:shows|gives|lists|displays|summarizes|contains\ the)\b
    | \b(?:in|from|use|using|according\ to)\ the\ table\b
      (?=[^.?]*\b(?:find|determine|what|how|shows?|given|data)\b|,|\ to\b)
    """, re.IGNORECASE | re.VERBOSE)
_TABULAR = re.compile(r"\\begin\{(?:tabular|array|matrix)|\|.*\|.*\n\s*\|?[\s:|-]+\|")


@rule("math", keeps=[
    {"answer": "42"}, {"answer": "\\frac{1}{2}"}, {"answer": "\\text{Evelyn}"}, {"answer": "even"},
    {"answer": "(-\\infty, 2) \\cup (3, \\infty)"}, {"answer": "x = 3"}, {"answer": "5 square meters"},
    {"answer": "\\text{June 20}"}, {"answer": "(C)"}, {"answer": "no solution"},
    {"answer": "\\text{Monday, Tuesday, and Friday}"},
], drops=[
    {"answer": "Answers may vary."}, {"answer": "See the solution above"}, {"answer": "(a) 3 (b) 4"},
    {"answer": "It depends on the choice of the point, since the line may be chosen freely."},
    {"answer": "..."}, {"answer": "?"}, {"answer": "1" * 400}, {"answer": "\\frac{1}{2"},
    {"answer": "Because the sum of the digits is divisible by three the number is too"},
    {"answer": "Not enough information"},
])
def unverifiable(row: Row) -> bool:
    """The answer is prose, several labelled answers, an excuse, too long, or nothing that mathematics reads."""
    answer = row.answer or ""
    if len(answer) > MAX_ANSWER or re.search(
            r"(?i)\b(?:answers? (?:may|will|can) vary|see (?:the )?(?:solution|above|below|figure|proof)|"
            r"(?:not enough|insufficient) information|cannot be determined|it depends|undetermined)\b", answer):
        return True
    if re.search(r"\(\s*(?:a|1|i)\s*\).*\(\s*(?:b|2|ii)\s*\)", answer):
        return True
    if len(re.findall(r"\b[A-Za-z]{2,}\b", re.sub(r"\\[A-Za-z]+", "", answer))) > 8:
        return True
    if answer.count("{") != answer.count("}") or not re.search(r"[^\W_]|\\(?:emptyset|infty|pi)\b", answer):
        return True
    try:
        math.check(answer)
    except UserError:
        return True
    return False


@rule("math", keeps=[
    {"prompt": "Which is larger? (A) 2 (B) 3 (C) 4", "answer": "(C)"},
    {"prompt": "Which is it? $\\text{(A)}\\ 2 \\qquad \\text{(B)}\\ 3 \\qquad \\text{(C)}\\ 4$", "answer": "\\text{C}"},
    {"prompt": "Let (A) be a set and (B) another. How many lines join (C) to them?", "answer": "2"},
    {"prompt": "Triangle (ABC) has side 3. What is its perimeter?", "answer": "9"},
], drops=[
    {"prompt": "What is it? $\\text{(A)}\\ 2 \\qquad \\text{(B)}\\ 3 \\qquad \\text{(C)}\\ 4 \\qquad \\text{(D)}\\ 5$",
     "answer": "4"},
    {"prompt": "Which?\n(A) 1\n(B) 2\n(C) 3\n(D) 4", "answer": "3"},
])
def choice_by_value(row: Row) -> bool:
    """Lettered choices, but the answer is no letter: whether the letter or the value is asked, nobody can tell."""
    marks = [row.prompt.find(f"({letter})") for letter in "ABCD"]
    listed = min(marks) >= 0 and marks == sorted(marks)
    return listed and not re.fullmatch(r"(?:\\text(?:bf)?\s*\{)?\s*\(?[A-Z]\)?\s*\}?(?:\s*,\s*\(?[A-Z]\)?\}?)*",
                                       (row.answer or "").strip())


RULES: list[Rule] = [multi_part, proof, needs_image, needs_table, choice_by_value, unverifiable]
