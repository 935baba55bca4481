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

_ASK = (r"(?:find|determine|compute|calculate|evaluate|express|simplify|solve|factor|expand|differentiate|integrate|"
        r"list|state|write down|give|what|which|how (?:many|much|long|far|often|old|big|large|tall|fast))\b")
_REQUEST = rf"(?:(?:^|[.:;?!]\s+|,\s+(?!which\b)|\n\s*|\b(?:and|then|hence|thus|so|that|also),?\s+)\W{{0,3}}{_ASK}|\?)"
"""What asks for an answer, where a sentence or a clause begins."""


@rule("math", keeps=[
    "Point $P$ is on line (a) of the plane. What is its slope?",
    "Which is larger? (A) 2 (B) 3 (C) 4",
    "Let f(a) = 2a and g(b) = 3b. Find f(g(1)).",
    "The vertices are $(a)$, $(b)$ and $(c)$; find the sum of their abscissas.",
    "How many apples? He eats (1) apple and (2) pears.",
    "What is the least $n$ such that:\na) When divided by 2, it leaves 1.\nb) When divided by 3, it leaves 2.",
    "Part A of the course is 3 miles. How long is the whole?",
    "Mary has twice as many as Al. Does she have more than Bo? If so, by how much does she have more?",
    "Solve: (1) $x+y=9$; (2) $x-y=5$. What is $xy$?", "Find $x$ in the form $a+b\\sqrt{c}$. Find $a+b+c$.",
    "How many ways are there to choose? That is, in how many ways can we choose a chief and two men?",
    "Find all multiples of the form $5d5$. What is the largest $d$?",
    "It has these properties: (1) The least value is 5, which occurs at 3. (2) It passes through 0. What is it at 1?",
], drops=[
    "Let $f(x)=x^2$. (a) Find $f'(x)$. (b) Find the tangent at $x=1$.",
    "Consider the circle.\n(1) Find its radius;\n(2) Find its area.",
    "1. Compute $2+2$.\n2. Compute $3+3$.",
    "i) Find x. ii) Find y.",
    "Part (a): find n. Part (b): find m.",
    "How many apples does Ann have? How many apples does Bob have?", "How old is Ann, and how old is Tom?",
    "[a] Differentiate $x^3$. [b] Integrate $x^3$.", "Part 1. Solve $x=4$. Part 2. Solve $x=5$.",
    "Factor the following expressions.\nA. $x^2-9$\nB. $x^2+5x+6$", "Find the mean. Also, find the median.",
    "\\begin{enumerate} \\item Find $|z|$. \\item Find $z^2$. \\end{enumerate}",
])
def multi_part(row: Row) -> bool:
    """Labelled parts that each ask something, or several questions: the reference answers one."""
    return _asks_in_parts(row.prompt) or _asks_repeatedly(row.prompt)


_LABELS = (("a", "b"), ("A", "B"), ("1", "2"), ("i", "ii"), ("I", "II"))
_PART = (r"(?:(?<![\w)}}])[(\[]\s*{0}\s*[)\]](?=[\s}}*:])|\b(?:[Pp]art|PART|[Qq]uestion)\s*\(?{0}\)?\s*[.:*}}]|"
         r"(?:^|(?<=[\n.?!;:$ ]))\(?(?:\d\.)?{0}[).]\s)")
_EACH = (r"\b(?:evaluate|solve|factor|simplify|compute|find|calculate|determine|answer|expand|express)\s+"
         r"(?:each\b(?! of the (?:sides|angles))|(?:all )?the following (?:\w+ ){0,2}\w+s\b)[^.?\n]{0,60}[.:]\s*$|"
         r"\b(?:evaluate|factor|simplify|compute|expand)\s*:\s*$")
"""One request for all of the parts."""


def _asks_in_parts(text: str) -> bool:
    if re.search(r"\\item\b.*\\item\b", text, re.DOTALL):
        first, second = re.split(r"\\item\b", text)[1:3]
        if all(re.match(rf"\W*{_ASK}", part, re.I) for part in (first, second)):
            return True
    for labels in _LABELS:
        first, second = (re.compile(_PART.format(label), re.MULTILINE) for label in labels)
        if not (one := first.search(text)) or not (two := second.search(text, one.end())):
            continue
        parts = text[one.end():two.start()], text[two.end():]
        if all(re.search(rf"^\W*{_ASK}|{_REQUEST}", part, re.I) for part in parts):
            return True
        if re.search(_EACH, text[:one.start()], re.I) and not re.search(_NO_PARTS, text, re.I):
            return True
    return False


_NO_PARTS = r"\b(?:systems?|simultaneous|statements?|conditions?|rules?|properties|steps?)\b"


def _asks_repeatedly(text: str) -> bool:
    """Two questions, or two orders. A question after an order is most often what the order was for, as is an expression
    in letters that were found before."""
    text = re.sub(r"\"[^\"]*\"|``.*?''|“[^”]*”", "", text)
    if re.search(rf"\b{_QUESTION}[^.?:]{{0,300}} and (?:what|how (?:many|much|long|far|old|tall)) "
                 r"(?:is|are|was|will|would|do|does|did)\b[^.?]{0,300}\?", text, re.I):
        return True
    sentences = [s for s in re.split(r"(?<=[.?])\s+", text.strip()) if not re.match(r"that is|in other words", s, re.I)]
    if re.search(r"(?:what is|find|compute) \$[^$]*[-+|\\][^$]*\$\W*$", sentences[-1], re.I):
        return False
    questions = [s for s in sentences if s.endswith("?") and re.search(rf"\b(?:{_QUESTION}|find\b)", s, re.I)]
    return len(questions) > 1 or sum(bool(re.match(_ORDER, s, re.I)) for s in sentences) > 1


_QUESTION = r"(?:how (?:many|much|long|far|often|old|tall|fast)|what (?:is|are|was|were|will|would))\b"
_ORDER = r"(?:(?:then|also|next|first|second|finally),? )?(?:find|compute|calculate|determine|evaluate)\b"


@rule("math", keeps=[
    "How much did his time improve?",
    "To prove he is fast, Sam runs 3 miles in 20 minutes. What is his speed?",
    "Prove-It Inc. sells 3 books at $5. How much does it earn?",
    "Show that $x > 0$, then find the least $x$.",
    "The proof of this whiskey is 80. What is the percentage of alcohol?",
    "A show that lasts 2 hours starts at 7. When does it end?",
    "It can be shown that $n^2+n$ is even. What is the largest such $n$ below 5?", "Find all $p$. Prove your answer.",
    "Find all primes of this form. Prove that there are no others.", "Show all steps. What is $2+2$?",
], drops=[
    "Prove that there are infinitely many primes.",
    "Let $n$ be odd. Show that $n^2 - 1$ is divisible by 8.",
    "Show there is no integer $x$ with $x^2 = 2$.",
    "Let $a, b > 0$. Prove: $a + b \\ge 2\\sqrt{ab}$.",
    "Demonstrate that the sum converges.", "Can you prove that $x=x$?", "Explain why $n^2+n$ is even.",
    "Verify the identity $a=a$.", "Give a proof that there are infinitely many primes.",
    "It is to be proved that $x>0$.",
    {"prompt": "What about triangle ABC?", "answer": "proof"},
])
def proof(row: Row) -> bool:
    """Asks for a proof and for nothing else."""
    if re.fullmatch(r"(?:see )?(?:the )?(?:proof|proved|q\.?e\.?d\.?|see solution)", (row.answer or "").strip(), re.I):
        return True
    asked = _PROVE.search(row.prompt)
    if not asked or re.search(rf"(?:^|[.;]\s+){_ASK}", row.prompt[:asked.start()], re.I):
        return False
    rest = row.prompt[asked.end():]
    return not re.search(_REQUEST, rest.rstrip("? ") if asked["polite"] or asked["why"] else rest, re.I)


_PROVE = re.compile(r"""
    (?:^|[.;:,!?$]\s+|\n\s*|\b(?:then|please|formally)\s|(?P<polite>\b(?:can|could)\s+you\s))
    (?: (?:prove|disprove)\b (?!-) (?!\s+(?:your|his|her|their|it|popular|useful)\b)
      | show\b (?:\s+(?:that|there|if|the|why|whether)\b | \s*[:$\\] | ,?\s[^.?]{0,40}\bthat\b)
      | demonstrate\b (?:\s+(?:that|there|the|why)\b | \s*[:$\\])
      | (?:establish|verify|confirm|deduce|argue|justify)\s+(?:that|the\ (?:identity|inequality|claim|formula)|no)\b
      | (?:give|write|provide)\ (?:a|the)\ (?:\w+\ )?proof\b
      | derive\ the\ [\w ]*formula\b
      | explain\ why\b
      | (?P<why>why\b [^?]* \?\s*(?:explain|justify|prove)\b) )
    | \bto\ be\ (?:proved|proven|shown)\b""", re.IGNORECASE | re.VERBOSE)


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
    "The table shows the votes:\nAnn: 12\nBob: 19\nCid: 9\nHow many did Bob get?", "He sits at table 4. Who is next?",
    "The table lists $x=1,2,3$ with $y=2,5,10$. If $y=x^2+c$, what is $c$?",
], drops=[
    "According to the table below, how many were sold?",
    "The following table gives the ages of five men. What is the mean?",
    "The table shows the sales of a week. What is the total?", "Refer to Table 2. What is the mean?",
    "The values are given in the table. What is their range?", "The timetable is shown below. How long is the way?",
    "Use the table to find the mean.",
])
def needs_table(row: Row) -> bool:
    """Refers to a table of data that the text does not contain."""
    if _TABULAR.search(row.prompt):
        return False
    sentences = (s for s in re.split(r"(?<=[.?])\s+", row.prompt) if _TABLE.search(s))
    return any(len(re.findall(r"\d+", s)) < 3 for s in sentences)


_DATA = r"(?:table|chart|spreadsheet|timetable|schedule|histogram|price\ list|(?:stem|box|dot|scatter)[\w-]*\ plot)"
_TABLE = re.compile(rf"""
      \b(?:following|accompanying|above|given|attached)\ (?:\w+[ ])?{_DATA}\b
    | \b{_DATA}s?\ (?:(?:is\ )?(?:shown|given)\ )?(?:above|below)(?!\s+(?:the|a|his|her|from)\b)
    | \b{_DATA}s?\ (?:shows|gives|lists|displays|summari[sz]es|indicates|records|contains\ the)\b
    | \b(?:given|summari[sz]ed|shown|listed|recorded|missing|data)\ (?:in|from|by)\ (?:the|this)\ (?:\w+[ ])?{_DATA}\b
    | \b(?:use|using|see|complete|according\ to|based\ on|refer\ to|look\ at)\ the\ (?:\w+[ ])?{_DATA}\b
    | \b(?:in|from)\ the\ (?:table|(?:stem|box|dot|scatter)[\w-]*\ plot)\b
      (?=[^.?]*\b(?:find|determine|what|how|shows?|given|data)\b|,|\ to\b)
    | \b(?:in|from|to|see)\ (?-i:Table)\ \d+\b
    """, re.IGNORECASE | re.VERBOSE)
_TABULAR = re.compile(r"\\begin\{(?:tabular|array|matrix)|^[ \t]*\|?[ \t]*:?-+:?[ \t]*\|[ \t:|-]*$"
                      r"|(?:^[^\n.?]*\d[^\n.?]*(?:\n|$)){3}", re.MULTILINE)
"""A table in LaTeX or Markdown, or three lines in a row with a number and no sentence."""


@rule("math", keeps=[
    {"answer": "42"}, {"answer": "\\frac{1}{2}"}, {"answer": "\\text{Evelyn}"}, {"answer": "even"},
    {"answer": "(-\\infty, 2) \\cup (3, \\infty)"}, {"answer": "x = 3"}, {"answer": "5 square meters"},
    {"answer": "\\text{June 20}"}, {"answer": "(C)"}, {"answer": "no solution"},
    {"answer": "\\text{Monday, Tuesday, and Friday}"}, {"answer": "5, 7"}, {"answer": "1.5"}, {"answer": "f(a) + g(b)"},
], drops=[
    {"answer": "Answers may vary."}, {"answer": "See the solution above"}, {"answer": "(a) 3 (b) 4"},
    {"answer": "It depends on the choice of the point, since the line may be chosen freely."},
    {"answer": "..."}, {"answer": "?"}, {"answer": "1" * 400}, {"answer": "\\frac{1}{2"},
    {"answer": "Because the sum of the digits is divisible by three the number is too"},
    {"answer": "Not enough information"}, {"answer": "a) $x=2$; b) no solution"}, {"answer": "Part 1: 12, Part 2: 30"},
    {"answer": "1. 4\n2. 9"}, {"answer": "Sample response: 5"}, {"answer": "There are many correct answers"},
    {"answer": "https://a.org/b.png"}, {"answer": "nan"}, {"answer": "N/A"}, {"answer": "any x > 7, for example 8"},
])
def unverifiable(row: Row) -> bool:
    """The answer is prose, several labelled answers, an excuse, too long, or nothing that mathematics reads."""
    answer = row.answer or ""
    if len(answer) > MAX_ANSWER or _EXCUSE.search(answer) or _LABELLED.search(answer):
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


_EXCUSE = re.compile(r"""
      \banswers?\ (?:may|will|can)\ (?:vary|differ)\b | \b(?:many|various|multiple|several)\ (?:\w+\ )?answers\b
    | \b(?:sample|example)\ (?:answer|response|solution)\b | \bfor\ example\b | \bleft\ (?:as|to)\b
    | \bsee\ (?:the\ )?(?:solution|above|below|figure|proof)\b | \b(?:because|it\ depends|undetermined)\b
    | \b(?:not\ enough|insufficient)\ information\b | \bcannot\ be\ determined\b
    | https?:// | ^\W*(?:nan|null|n/?a|proof)\W*$""", re.IGNORECASE | re.VERBOSE)
_LABELLED = re.compile(r"""
      (?<![\w)}])\(\s*(?:a|1|i)\s*\).*(?<![\w)}])\(\s*(?:b|2|ii)\s*\)
    | (?:^|[\s;,])(?:a\).*[\s;,]b\)|b\).*[\s;,]c\)|c\).*[\s;,]d\))\s
    | ^1[.)]\s.*^2[.)]\s | \bpart\ (?:a|1)\b.*\bpart\ (?:b|2)\b""",
                       re.IGNORECASE | re.VERBOSE | re.DOTALL | re.MULTILINE)


@rule("math", keeps=[
    {"prompt": "Which is larger? (A) 2 (B) 3 (C) 4", "answer": "(C)"},
    {"prompt": "Which is it? $\\text{(A)}\\ 2 \\qquad \\text{(B)}\\ 3 \\qquad \\text{(C)}\\ 4$", "answer": "\\text{C}"},
    {"prompt": "Which are even?\nA. 2\nB. 3\nC. 4\nD. 5", "answer": "\\text{AC}"},
    {"prompt": "Let (A) be a set and (B) another. How many lines join (C) to them?", "answer": "2"},
    {"prompt": "Triangle (ABC) has side 3. What is its perimeter?", "answer": "9"},
], drops=[
    {"prompt": "What is it? $\\text{(A)}\\ 2 \\qquad \\text{(B)}\\ 3 \\qquad \\text{(C)}\\ 4 \\qquad \\text{(D)}\\ 5$",
     "answer": "4"},
    {"prompt": "Which?\n(A) 1\n(B) 2\n(C) 3\n(D) 4", "answer": "3"},
    {"prompt": "Which is closest? A. 0.1 B. 0.15 C. 0.2 D. 0.25", "answer": "0.2"},
])
def choice_by_value(row: Row) -> bool:
    """Lettered choices, but the answer is no letter: whether the letter or the value is asked, nobody can tell."""
    listed = False
    for form in (r"\({}\)", r"(?<![^\s{{$]){}\)(?=[\s\\}}$])", r"(?<![^\s{{$]){}\.(?=[\s\\}}$])"):
        marks = [mark.start() if (mark := re.search(form.format(letter), row.prompt)) else -1 for letter in "ABCD"]
        listed |= min(marks) >= 0 and marks == sorted(marks)
    answer = re.sub(r"\\(?:text|math)(?:bf|rm)?", "", row.answer or "")
    return listed and not re.fullmatch(r"\W*[A-Z](?:\W*[A-Z])*\W*", answer)


RULES: list[Rule] = [multi_part, proof, needs_image, needs_table, choice_by_value, unverifiable]
