"""What an engine changes for its whole process is as it was for the tests that come after."""

from collections.abc import Iterator

import pytest
import torch._dynamo


@pytest.fixture(scope="module", autouse=True)
def compiling_as_it_was() -> Iterator[None]:
    with torch._dynamo.config.patch(disable=torch._dynamo.config.disable):
        yield
