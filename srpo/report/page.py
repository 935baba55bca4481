"""The page: the figures as JSON, the plots' library and our scripts, all in one file.

Prompts and responses come from a model and may hold anything. They are JSON in a script element without a `<` in it,
the scripts put them on the page as text only, and the page's content security policy, by the scripts' digests, lets no
other script run and nothing be fetched. Vega therefore interprets its expressions instead of compiling them.
"""

from __future__ import annotations

import json
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from string import Template
from typing import Any

SCRIPTS = ("theme.js", "charts.js", "figures.js", "responses.js", "main.js")
"""Ours, in the order in which they run, after the library."""


def page(report: dict[str, Any]) -> str:
    """The whole document. `report` is JSON-able; see srpo/report/collect.py."""
    import vl_convert  # Vega, Vega-Lite and Vega-Embed as one script; takes a second or two

    web = files("srpo.report") / "web"
    library = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    scripts = [library, "\n".join((web / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    for script in scripts:
        if "</script" in script or "<!--" in script:
            raise ValueError("a script of the page would end its own element")
    digests = " ".join(f"'sha256-{b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return Template((web / "page.html").read_text(encoding="utf-8")).substitute(
        digests=digests, style=(web / "page.css").read_text(encoding="utf-8"), data=embedded(report),
        library=library, scripts=scripts[1])


def embedded(value: Any) -> str:
    """JSON that is safe in a script element: ASCII, so that U+2028 and lone surrogates are escaped, and without `<`."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
