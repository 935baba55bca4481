"""`srpo report RUN [RUN ...] --out FILE`"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from srpo.commands.parser import Commands


def add(commands: Commands) -> None:
    report = commands.add_parser(
        "report", help="one HTML page that compares runs",
        description="Write one HTML page with the curves, epochs, behaviour and stored responses of one or more runs, "
                    "finished or not. It needs no network to be read.")
    report.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folder")
    report.add_argument("--out", metavar="FILE", type=Path, help="the page; report.html in the first RUN otherwise")
    report.set_defaults(handler=run)


def run(args: Namespace) -> int:
    from srpo.files import write_text
    from srpo.report.collect import collect
    from srpo.report.page import page

    out = args.out or args.runs[0] / "report.html"
    text = page(collect(args.runs))
    write_text(out, text)
    print(f"{out}: {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
    return 0
