"""The fixture `measured`: what a case of a launch measured; see harness.py."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import harness
import pytest

Measured = dict[str, Any]


@pytest.fixture(scope="session")
def launches(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable]:
    directory = tmp_path_factory.mktemp("launches")
    selected: dict[int, dict[tuple[str, str], None]] = {}  # in the order of the tests
    for item in request.session.items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("measured")  # type: ignore[attr-defined]
        if isinstance(case, harness.Case):
            selected.setdefault(case.ranks, {})[item.path.stem, case.name] = None

    @functools.cache
    def results(ranks: int) -> dict[tuple[str, str], Measured]:
        return harness.launch(ranks, list(selected[ranks]), directory)

    yield results
    shutil.rmtree(directory)


@pytest.fixture
def measured(request: pytest.FixtureRequest, launches: Callable) -> Measured:
    """What `measure` of this file returned for the parametrized harness.Case."""
    result = launches(request.param.ranks)[request.path.stem, request.param.name]
    assert "error" not in result, f"\n{result['error']}"
    return result
