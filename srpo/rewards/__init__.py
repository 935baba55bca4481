"""What a response is worth: accuracy by domain, format, language, length, and the user's own functions.

Grading happens in worker processes (`Graders`), because mathematics can hang a computer algebra system and code is
code; this package imports neither torch nor, until an answer needs it, sympy.
"""

from srpo.rewards.compose import Graded, Graders, Response

__all__ = ["Graded", "Graders", "Response"]
