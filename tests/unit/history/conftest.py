import random

import pytest
from random_ledger import write


@pytest.fixture(scope="package")
def run(tmp_path_factory):
    """Run folder: 40 prompts, of which mastered ones stay away for two epochs, and some are never solved."""
    folder = tmp_path_factory.mktemp("run")
    write(folder, random.Random(7))
    return folder
