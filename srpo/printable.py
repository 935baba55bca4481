"""What others wrote (models, data files, names of files and prompts), made fit for a terminal."""

from __future__ import annotations

_CONTROLS = (*range(32), *range(0x7F, 0xA0))
_PICTURES = {code: 0x2400 + code if code < 32 else 0x2421 if code == 0x7F else 0xFFFD
             for code in _CONTROLS if chr(code) not in "\t\n"}
_ESCAPES = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 32}


def visible(text: str) -> str:
    """With control characters (C0, DEL and C1) as their pictures: a response that held them could write anywhere on the
    screen, or set the terminal's title and clipboard."""
    return text.translate(_PICTURES)


def visible_json(text: str) -> str:
    """JSON of the same value without control characters: it has those of C0 escaped, and lets DEL and C1 stand."""
    return text.translate(_ESCAPES)
