"""Programs that do not play along, as root and as an ordinary user, in each isolation that this host allows."""

import re

import pytest
from accounts import ACCOUNTS, AT_REST, SECRET, Judge, allowed
from attacks import ATTACKS, FUNCTION, HONEST, Attack


def test_the_host_isolates_for_every_account():
    assert {account for account, _ in allowed()} == set(ACCOUNTS), "nothing below would be tested"


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_contained(judge: Judge, attack: Attack):
    """It passes nothing and is stopped for the reason that it must be; the host is as before, and the next program
    is judged rightly."""
    here = {"HOME": str(judge.ground.home), "VICTIM": str(judge.ground.victim.pid)}
    program, before = (re.sub("HOME|VICTIM", lambda m: here[m[0]], text) for text in (attack.program, attack.before))
    if before:
        assert judge(before, FUNCTION)["passed"] == 1
    verdict = judge(program, attack.tests or FUNCTION, wall=attack.wall, cpu=60, scratch=4 << 20)
    assert verdict["passed"] == 0 and re.search(attack.reason, verdict["reason"]), verdict["reason"]
    assert SECRET not in verdict["reason"] and "LEAKED" not in verdict["reason"]
    assert verdict["seconds"] < attack.wall + 5
    assert len(judge.processes()) == AT_REST[judge.isolation]
    judge.ground.unharmed()
    assert judge(HONEST, FUNCTION)["passed"] == 1
