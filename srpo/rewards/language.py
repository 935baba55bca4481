"""How much a response mixes languages: the share of its letters in scripts that the prompt does not use.

The SRPO report has a language-mixing penalty and does not define it; DeepSeek-R1 rewards the share of words in the
target language. Ours needs no language model: a letter's script is the first word of its Unicode name (LATIN, CJK,
CYRILLIC, ...). Notation belongs to no language and is not counted: tags, LaTeX, fenced code, Greek letters and
mathematical alphabets. Two languages in one script are not told apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache

_NOTATION = re.compile(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.{0,1000}?\\\)|\\\[.{0,1000}?\\\]"
                       r"|\\[A-Za-z]+|<[^<>\n]*>", re.DOTALL)
_NEUTRAL = {"GREEK", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER", "MODIFIER", "MICRO", "ANGSTROM"}


def mixing(prompt: str, response: str) -> float:
    """Share, in [0, 1], of the response's letters in scripts absent from the prompt; 0 where either has no letters."""
    own, counts = _scripts(prompt), _scripts(response)
    total = counts.total()
    return sum(n for script, n in counts.items() if script not in own) / total if own and total else 0.0


def _scripts(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for character, n in Counter(_NOTATION.sub(" ", text)).items():
        if script := _script(character):
            counts[script] += n
    return counts


@cache
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    script = unicodedata.name(unicodedata.normalize("NFKC", character)[0], "UNKNOWN").split()[0]
    return None if script in _NEUTRAL else script
