"""What the README shows is true of the code."""

import json
import re
from pathlib import Path

from srpo.cli import command

README = Path(__file__).parents[2] / "README.md"


def test_its_configuration_fits_eight_gpus(tmp_path, capsys):
    (shown,) = re.findall(r"```yaml\n(run: .*?)```", README.read_text(), re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(shown)
    assert command(["plan", str(file), "--gpus", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["configuration"]["sync_bytes"] == {"fullest_rank": 0, "owned": 0}
