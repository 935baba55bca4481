"""The quick count of a sync's bytes against the reshard plan itself, for every pair of small layouts."""

from itertools import product
from types import SimpleNamespace

import pytest
from jobs import tiny

from srpo.plan.reshard import sync
from srpo.rollout.reshard import Layout, plan

LAYOUTS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4), (2, 4)]


@pytest.mark.parametrize(("kind", "tied"), list(product(("llama", "qwen2", "qwen3"), (False, True))))
def test_bytes_are_those_of_the_plan(kind, tied):
    hf, shape = tiny(kind, tied, kv_heads=2)
    moving = 0
    for train, rollout in product([t for t in LAYOUTS if t[0] <= 2], [*LAYOUTS, (8, 1)]):
        job = SimpleNamespace(
            shape=shape, tensor=train[0], pipeline=train[1], itemsize=2,
            config=SimpleNamespace(rollout_tensor=rollout[0], rollout=SimpleNamespace(pipeline=rollout[1])))
        found = sync(job)  # type: ignore[arg-type]
        whole = plan(hf, Layout(*train), Layout(*rollout), itemsize=2)
        owned = [sum(whole._nbytes(r, name) for name in whole.shapes[r]) - whole.aliased[r] for r in range(whole.ranks)]
        if train == rollout:
            assert found.needed == found.owned == [0] and not any(whole.needed) and not any(owned)
            continue
        assert (found.needed, found.owned) == (whole.needed, owned), (train, rollout)
        moving += sum(found.needed)
    assert moving
