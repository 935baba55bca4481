"""A sandbox for each account and isolation that this host allows."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from accounts import AT_REST, Ground, Judge, allowed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "judge" in metafunc.fixturenames:
        metafunc.parametrize("judge", allowed(), indirect=True, scope="module", ids="-".join)


@pytest.fixture(scope="module")
def judge(request: pytest.FixtureRequest) -> Iterator[Judge]:
    """After the last test nothing may be left, and nothing of the host have changed."""
    account, isolation = request.param
    folder = Path(tempfile.mkdtemp(prefix="srpo-attack-"))
    folder.chmod(0o755)
    ground = Ground(account, folder)
    judge = Judge(account, isolation, ground)
    assert not judge.refused
    yield judge
    assert len(judge.processes()) == AT_REST[isolation]
    judge.close()
    assert judge.processes() == set() and os.listdir(ground.scratch) == []
    ground.unharmed()
    ground.close()
