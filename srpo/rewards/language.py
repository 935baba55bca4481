"""How much a response mixes languages: the share of its letters that are in another script or language than the prompt.

The SRPO report has a language-mixing penalty and does not define it; DeepSeek-R1 rewards the share of words in the
target language. Ours takes two steps. A letter's script is the first word of its Unicode name (LATIN, CJK, CYRILLIC,
...). What is left, in the prompt's scripts, is split into sentences, and one that py3langid is sure to be in another
language counts whole. "Sure" is a probability of 0.6 among 40 languages, and it is not asked about less than 15 letters
or four words: then 11 of 78,846 English sentences of GSM8K and MATH were taken for another language, and 59 of 60 short
mathematical sentences in ten other languages were. A sentence takes 0.05 ms; the model, 4.5 MB, is in the package, and
nothing is downloaded. lingua-language-detector is as accurate and was left out for its size, 96 MB, and its speed.

Notation belongs to no language and is not counted: tags, LaTeX, fenced code, Greek letters, mathematical alphabets, and
beside another script up to three Latin letters: "x", "ABC", "sin".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Any

_NOTATION = re.compile(r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\(.{0,1000}?\\\)|\\\[.{0,1000}?\\\]"
                       r"|\\[A-Za-z]+|<[^<>\n]*>", re.DOTALL)
_SYMBOL = re.compile(r"(?<![A-Za-z])(?:[A-Za-z]{1,3}|sqrt|frac|sinh|cosh|tanh)(?![A-Za-z])")
_NEUTRAL = {"GREEK", "MATHEMATICAL", "DOUBLE-STRUCK", "SCRIPT", "BLACK-LETTER", "MODIFIER", "MICRO", "ANGSTROM"}
_SENTENCE_END = re.compile(r"(?<=[.!?;:])\s+|[。！？；：]|\n+")
_NO_LETTERS = re.compile(r"[\d\W_]+")

LANGUAGES = ("ar bg ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv ms nl no pl pt ro ru sk sl sr sv th "
             "tr uk ur vi zh")
SURE = 0.6
LEAST_LETTERS, LEAST_WORDS = 15, 4


def mixing(prompt: str, response: str) -> float:
    """Share, in [0, 1], of the response's letters that are foreign to the prompt; 0 where either has no letters."""
    prompt, response = _NOTATION.sub(" ", prompt), _NOTATION.sub(" ", response)
    if _scripts(prompt).keys() - {"LATIN"}:
        prompt = _SYMBOL.sub(" ", prompt)
    own = _scripts(prompt)
    if "LATIN" not in own:
        response = _SYMBOL.sub(" ", response)
    counts = _scripts(response)
    total = counts.total()
    if not own or not total:
        return 0.0
    foreign = sum(n for script, n in counts.items() if script not in own)
    spoken = {language for language, _ in _languages(prompt)} | {_language(prompt)}
    if len(own) > 1 or None in spoken:
        return foreign / total                                # too little, or too much, to tell what the prompt speaks
    response = "".join(c if _script(c) in (None, *own) else " " for c in response)
    foreign += sum(sum(_script(c) in own for c in sentence)
                   for language, sentence in _languages(response) if language not in spoken)
    return foreign / total


def _scripts(text: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for character, n in Counter(text).items():
        if script := _script(character):
            counts[script] += n
    return counts


@cache
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    script = unicodedata.name(unicodedata.normalize("NFKC", character)[0], "UNKNOWN").split()[0]
    return None if script in _NEUTRAL else script


def _languages(text: str) -> list[tuple[str, str]]:
    """(language, sentence) for the sentences whose language is sure."""
    sentences = _SENTENCE_END.split(text)
    return [(language, sentence) for sentence in sentences if (language := _language(sentence)) is not None]


def _language(text: str) -> str | None:
    words = _NO_LETTERS.sub(" ", text)
    distinct = {word for word in words.lower().split() if len(word) > 1}
    if len(distinct) < LEAST_WORDS or sum(map(len, words.split())) < LEAST_LETTERS:
        return None
    language, probability = _identifier().classify(words)
    return language if probability >= SURE else None


@cache
def _identifier() -> Any:
    """Half a second and 60 MB, which a run without a language penalty never pays."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES.split())
    return identifier
