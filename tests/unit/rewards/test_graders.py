"""Rewards as a whole: the sum, the order, and what a misbehaving grader costs."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from srpo.batch import Sample
from srpo.config import CustomReward, Overlong, Reward
from srpo.data.schema import Problem
from srpo.errors import UserError
from srpo.rewards import Graders, Response
from srpo.rewards.compose import BROKEN, check_problems
from srpo.rewards.worker import bounded_memory
from srpo.statistics import Update, step_metrics

GOOD = "three</think><answer>3</answer>"


def math(id="m", answer="3", prompt="What is it?"):
    return Problem(id, "math", prompt, answer=answer)


def response(text=GOOD, problem=None, tokens=10):
    return Response(problem or math(), text, tokens, False)


@pytest.fixture(autouse=True)
def users_module(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def graders(users_module):
    made = []

    def make(workers=1, **reward):
        made.append(Graders(Reward(**{"style": "think_answer"} | reward), 100, workers))
        return made[-1]

    yield make
    for g in made:
        g.close()


def custom(name, weight=1.0):
    return [CustomReward(function=f"custom_rewards:{name}", weight=weight)]


def test_the_reward_is_the_weighted_sum_of_its_parts(graders):
    reward = {"accuracy": 2.0, "format": 0.5, "language": 3.0, "overlong": Overlong(start=50, penalty=4.0)}
    g = graders(**reward, custom=custom("length", 0.25))
    out, = g.grade([response("三四ab</think><answer>3</answer>", tokens=75)])
    assert out.parts == {"accuracy": 2.0, "format": 0.5, "language": -1.5, "overlong": -2.0,
                         "custom_rewards:length": 0.25 * 30}
    assert (out.correct, out.reward, out.reason, out.failed) == (1.0, 2.0 + 0.5 - 1.5 - 2.0 + 7.5, "correct", False)


def test_many_responses_over_workers_keep_their_order(graders):
    responses = [response(f"x</think><answer>{i % 7}</answer>", math(f"m{i}", str(i % 5))) for i in range(200)]
    out = graders(workers=2).grade(responses)
    assert [o.correct for o in out] == [float(i % 7 == i % 5) for i in range(200)]
    assert [o.reward for o in out] == pytest.approx([1.1 if i % 7 == i % 5 else 0.1 for i in range(200)])


def test_grades_of_responses_submitted_as_they_come_are_those_of_one_call(graders):
    """Under any names, in any order, in any portions, and with a worker lost on the way."""
    texts = [f"x</think><answer>{i % 7}</answer>" for i in range(40)]
    texts[7] = texts[23] = f"bad {GOOD}"
    responses = [response(text, math(f"m{i}", str(i % 5))) for i, text in enumerate(texts)]
    g = graders(workers=2, custom=custom("dies"))
    at_once = g.grade(responses)
    assert [o.failed for o in at_once] == [i in (7, 23) for i in range(40)]
    for i in reversed(range(40)):
        g.submit({("prompt", i): responses[i]})
        g.submit({})
    one_by_one = g.collect()
    assert [one_by_one["prompt", i] for i in range(40)] == at_once
    assert g.collect() == {}


def test_grading_goes_on_without_being_waited_for(graders):
    """One worker and three responses: calls that bring nothing hand out what waits, and nothing is left to wait for."""
    g = graders(workers=1, custom=custom("length"))
    g.submit({i: response() for i in range(3)})
    deadline = time.monotonic() + 60
    while None in g._pool._answers and time.monotonic() < deadline:
        g.submit({})
        time.sleep(0.001)
    assert None not in g._pool._answers
    assert len(g.collect()) == 3


def test_a_hung_grader_is_found_while_others_are_submitted(graders):
    g = graders(workers=1, custom=custom("hangs"), timeout=0.5)
    g.submit({"hung": response(f"bad {GOOD}")})
    deadline = time.monotonic() + 60
    while None in g._pool._answers and time.monotonic() < deadline:
        g.submit({})
        time.sleep(0.01)
    g.submit({"fine": response()})
    assert {key: o.failed for key, o in g.collect().items()} == {"hung": True, "fine": False}


def test_a_problem_is_written_once_however_many_responses_wait(graders):
    """Two problems of 1 MB and 32 responses to each; another problem with the same id is another one."""
    def problem(expected):
        cases = [{"args": ["x" * 1_000_000], "expected": expected}]
        return Problem("c", "code", "Take the first.", tests={"kind": "function", "entry_point": "f", "cases": cases})

    problems = [problem("x"), problem("y")]
    g = graders(workers=2)
    for i in range(64):
        g.submit({i: response("</think><answer>def f(s): return s[0]</answer>", problems[i % 2])})
    assert os.fstat(g._pool._store.fileno()).st_size < 2_100_000
    assert [o.correct for o in g.collect().values()] == [1.0, 0.0] * 32
    assert os.fstat(g._pool._store.fileno()).st_size == 0


def test_a_worker_that_does_not_read_keeps_nobody_waiting(graders):
    """The response is more than a socket holds, and is lost to the deadline like any other."""
    g = graders(workers=1, timeout=1.0)
    os.kill(g._pool._workers[0].process.pid, signal.SIGSTOP)
    g.submit({"stopped": response("x" * 5_000_000), "fine": response()})
    assert {key: o.reason for key, o in g.collect().items()} == {
        "stopped": "math: no answer within 1 s", "fine": "correct"}


def test_maths_and_code_together_and_an_endless_program_is_merely_wrong(graders):
    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [2], "expected": 4}]}
    problem = Problem("c", "code", "Double it.", tests=tests)
    right, wrong, endless = (f"x</think><answer>def f(x):\n    {body}</answer>"
                             for body in ("return 2 * x", "return x", "while 1: pass"))
    out = graders(timeout=4.0).grade([response(), *(response(t, problem) for t in (right, wrong, endless))])
    assert [(o.correct, o.failed) for o in out] == [(1.0, False), (1.0, False), (0.0, False), (0.0, False)]
    assert [o.reason for o in out[1:]] == ["passed", "case 0: wrong answer", "case 0: time limit"]


def test_code_may_be_scored_by_the_fraction_of_its_cases(graders):
    cases = [{"args": [n], "expected": 2 * n} for n in (1, 2, 3, 4)]
    problem = Problem("c", "code", "Double it.", tests={"kind": "function", "entry_point": "f", "cases": cases})
    text = "x</think><answer>def f(x): return 4 if x < 3 else 2 * x</answer>"
    for fraction, correct in ((True, 0.75), (False, 0.0)):
        out, = graders(fraction=fraction).grade([response(text, problem)])
        assert (out.correct, out.parts["accuracy"], out.reason) == (correct, correct, "case 0: wrong answer")


def test_a_style_that_does_not_fit_the_responses_shows_in_every_grade(graders):
    """What a run warns of when it is so in a whole step."""
    texts = ["7*8 = 56. The answer is \\boxed{56}.", "<answer>56</answer>"]
    responses = [response(text, math(answer="56")) for text in texts]
    assert [(g.answered, g.correct) for g in graders(style="think_answer").grade(responses)] == [(False, 0.0)] * 2
    assert [(g.answered, g.correct) for g in graders(style="boxed").grade(responses)] == [(True, 1.0)] * 2


def test_an_answer_given_while_thinking_does_not_count_in_the_think_style(graders):
    text = "so \\boxed{3}"
    assert graders(style="boxed").grade([response(text)])[0].correct == 1.0
    assert graders(style="think_answer").grade([response(text)])[0].correct == 0.0


@pytest.mark.parametrize(("name", "why"), [
    ("raises", "ValueError: no idea"), ("nan", "returned nan"), ("infinite", "returned inf"), ("none", "TypeError"),
    ("leaves", "SystemExit"), ("dies", "its process died"), ("hangs", "no answer within 1.5 s"),
    ("killed", "its process died"), ("hangs_deaf", "no answer within 1.5 s"), ("talks", "ValueError: y y y"),
    ("huge", "Error"), ("string", "ValueError: could not convert"), ("recurses", "RecursionError"),
])
def test_a_failing_grader_costs_one_response_a_zero(graders, caplog, name, why):
    texts = [GOOD, f"bad {GOOD}", GOOD, GOOD]
    g = graders(custom=custom(name), timeout=1.5)
    with caplog.at_level(logging.WARNING):
        out = g.grade([response(t, math(f"m{i}")) for i, t in enumerate(texts)])
    assert [(o.correct, o.reward, o.failed) for o in out] == [
        (1.0, 2.1, False), (0.0, 0.0, True), (1.0, 2.1, False), (1.0, 2.1, False)]
    assert why in out[1].reason and out[1].mistaken == ("died" not in why and "no answer" not in why)
    line, = caplog.messages
    assert f"custom_rewards:{name} failed on problem m1: " in line and why in line and len(line) < 800
    assert [o.failed for o in g.grade([response()])] == [False], "the next step is graded as if nothing had happened"


def test_every_failure_in_one_step_is_counted_and_the_rest_is_graded(graders):
    """Two workers, a third of the responses bad in some way; the metric that the trainer logs is their number."""
    names = ["raises", "nan", "dies", "killed", "hangs", "leaves"]
    g = graders(workers=2, timeout=1.0, custom=custom("as_told"))
    texts = [f"bad {names[i // 3]} {GOOD}" if i % 3 == 1 else f"fine {i} {GOOD}" for i in range(3 * len(names))]
    out = g.grade([response(text, math(f"m{i}")) for i, text in enumerate(texts)])
    assert [o.failed for o in out] == [i % 3 == 1 for i in range(len(texts))]
    assert all((o.correct, o.reward) == ((0.0, 0.0) if o.failed else (1.0, 2.1)) for o in out)
    samples = [Sample(np.array([1]), np.array([2])) for _ in out]
    metrics = step_metrics([math()] * len(out), samples, out, [0.0] * len(out), Update(tokens=1),
                           {"time/rollout": 1.0, "time/update": 1.0})
    assert metrics["reward/failed"] == len(names)


@pytest.mark.parametrize("name", ["leaves_child", "dies_with_child"])
def test_what_a_killed_function_started_ends_with_it(graders, tmp_path, name):
    file = tmp_path / "pid"
    out, _ = graders(custom=custom(name), timeout=1.5).grade([response(f"bad {file} {GOOD}"), response()])
    assert out.failed and not _running(file.read_text())


def test_an_algebraic_bomb_costs_its_response_and_no_more(graders):
    bomb = "\\frac{x^{23}-1}{x-1}(\\sqrt{3}+\\sqrt{x})(\\sqrt{52}+\\sqrt{x})(x^{46}+1)\\frac{x^{8}-1}{x-1} < 1"
    g = graders(timeout=2.0)
    out = g.grade([response(f"</think><answer>{text}</answer>", math(answer="[1, 7)")) for text in (bomb, "[1,7)")])
    assert [(o.correct, o.failed, o.reason) for o in out] == [
        (0.0, True, "math: no answer within 2 s"), (1.0, False, "correct")]


def test_memory_is_bounded_and_given_back():
    with bounded_memory(1 << 26):
        assert len(bytearray(1 << 24)) == 1 << 24
        with pytest.raises(MemoryError):
            bytearray(1 << 28)
    assert len(bytearray(1 << 28)) == 1 << 28


@pytest.mark.parametrize("name", ["raises", "dies"])
def test_a_function_that_always_fails_stops_the_run(graders, name):
    bad = [response(f"bad {GOOD}", math(f"m{i}")) for i in range(BROKEN) for _ in range(2)]
    stopped = f"reward.custom: 'custom_rewards:{name}' failed on all of the last {2 * BROKEN} responses: "
    with pytest.raises(UserError, match=stopped):
        graders(custom=custom(name)).grade(bad)
    one_by_one = graders(custom=custom(name))
    for i in range(BROKEN - 1):
        assert all(o.failed for o in one_by_one.grade(bad[2 * i: 2 * i + 2]))
    with pytest.raises(UserError, match=stopped):
        one_by_one.grade(bad[-2:])


def test_a_function_that_fails_on_one_problem_does_not(graders):
    """However many samples of it there are, and however often it comes alone in a call."""
    g = graders(custom=custom("raises"))
    for _ in range(2 * BROKEN):
        assert all(o.failed for o in g.grade([response(f"bad {GOOD}")] * (BROKEN + 1)))
        assert not any(o.failed for o in g.grade([response(problem=math("other"))]))


def other(worth=1.0, id="o"):
    return Problem(id, "other", "Well?", extra={"worth": worth})


def judge(name):
    return CustomReward(function=f"custom_rewards:{name}", role="correct")


def test_a_function_decides_what_is_correct_in_domain_other_and_there_alone(graders):
    g = graders(accuracy=2.0, custom=[judge("worth"), *custom("length", 0.5)])
    out = g.grade([*(response("yes", other(worth)) for worth in (1, 0.25, True)), response("no", other()), response()])
    assert [o.correct for o in out] == [1.0, 0.25, 1.0, 0.0, 1.0] and all(o.answered and not o.failed for o in out)
    assert out[1].parts == {"accuracy": 0.5, "format": 0.0, "language": 0.0, "custom_rewards:length": 1.5}
    assert out[1].reward == 2.0 and out[1].reason == "custom_rewards:worth: 0.25"
    assert out[4].reason == "correct"


@pytest.mark.parametrize(("worth", "why"), [
    (1.5, "ValueError: returned 1.5, which is not from 0 to 1"), (-0.1, "returned -0.1, which"),
    (float("nan"), "returned nan"), ("much", "ValueError: could not convert"), (None, "TypeError")])
def test_what_is_no_correctness_costs_its_response_a_zero(graders, worth, why):
    out = graders(custom=[judge("worth")]).grade([response("yes", other(worth)), response("yes", other(0.5))])
    assert [(o.correct, o.reward, o.failed) for o in out] == [(0.0, 0.0, True), (0.5, 0.5, False)]
    assert out[0].reason.startswith("custom_rewards:worth: ") and why in out[0].reason


@pytest.mark.parametrize(("name", "why"), [
    ("raises", "ValueError: no idea"), ("dies", "its process died"), ("hangs", "no answer within 1 s"),
    ("leaves", "SystemExit")])
def test_a_failing_judge_is_named_and_stops_the_run_in_the_end(graders, name, why):
    g = graders(custom=[judge(name)], timeout=1.0)
    bad, fine = [response("bad", other(id=f"o{i}")) for i in range(BROKEN)], response("fine", other())
    for _ in range(2):
        out = g.grade([*bad[:BROKEN - 1], fine])
        assert [o.failed for o in out] == [True] * (BROKEN - 1) + [False] and out[-1].correct == 1.0
        assert out[0].reason == f"custom_rewards:{name}: {why}"
    with pytest.raises(UserError, match=f"reward.custom: 'custom_rewards:{name}' failed on all of the last {BROKEN} r"):
        g.grade([*bad, response()])                           # maths, which it is not asked about, makes it no better


@pytest.mark.parametrize(("function", "why"), [
    ("no_such_module:f", "cannot be imported: ModuleNotFoundError"),
    ("custom_rewards:no_such", "cannot be imported: AttributeError"),
    ("custom_rewards", "write it as module:function"),
    ("custom_rewards:not_a_function", "is int, not a function"),
])
def test_a_function_that_cannot_be_had_is_named_at_the_start(graders, function, why):
    with pytest.raises(UserError, match=rf"reward\.custom\.0\.function = '{function}': {why}"):
        graders(custom=[CustomReward(function=function)])


@pytest.mark.parametrize("function", ["no_such_module:f", "custom_rewards:length"])
def test_a_grader_says_nothing_when_another_ones_error_has_closed_the_pool(function):
    ours, theirs = socket.socketpair()
    settings = json.dumps({"reward": Reward(custom=[CustomReward(function=function)]).model_dump(),
                           "max_response_tokens": 1})
    with theirs, ours, open(os.devnull) as store:
        worker = subprocess.Popen([sys.executable, "-m", "srpo.rewards.worker", str(theirs.fileno()),
                                   str(store.fileno()), settings], pass_fds=[theirs.fileno(), store.fileno()],
                                  stderr=subprocess.PIPE, cwd=Path(__file__).parent)
        theirs.close()
        ours.close()
        assert (worker.communicate(timeout=60)[1], worker.returncode) == (b"", 0)


@pytest.mark.parametrize(("problem", "why"), [
    (math("m7", answer="\\frac{"), "problem 'm7': answer = .* cannot be read as mathematics"),
    (Problem("c7", "code", "p", tests={"kind": "function", "entry_point": "f", "cases": []}),
     "problem 'c7': tests.cases: missing or empty"),
])
def test_unusable_references_name_the_problem(graders, problem, why):
    with pytest.raises(UserError, match=why):
        graders().grade([response("```\nx\n```</think><answer>x + 1</answer>", problem)])


def test_unusable_problems_are_named_before_any_is_graded():
    fine = [math(), Problem("c", "code", "p", tests={"kind": "assert", "entry_point": "f", "code": "assert f() == 1"})]
    check_problems(fine)
    check_problems([other()], [judge("worth")])
    with pytest.raises(UserError, match="problem 'o': domain = 'other': no function in reward.custom has role: corr"):
        check_problems([other()], custom("worth"))
    for problem, why in ((math("m7", answer="\\frac{"), "problem 'm7': answer = .* as mathematics; correct or drop it"),
                         (Problem("c7", "code", "p", tests={"kind": "junit"}), "problem 'c7': tests.kind = 'junit'")):
        with pytest.raises(UserError, match=why):
            check_problems([*fine, problem])


def test_nothing_is_left_running(graders):
    g = graders(workers=2)
    pids = [w.process.pid for w in g._pool._workers]
    assert g.grade([]) == []
    g.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_workers_end_with_a_trainer_that_was_killed(tmp_path):
    code = ("import os, signal, time\nfrom srpo.config import Reward\nfrom srpo.rewards import Graders\n"
            "g = Graders(Reward(style='think_answer'), 100, 2)\n"
            f"open({str(tmp_path / 'pids')!r}, 'w').write(' '.join(str(w.process.pid) for w in g._pool._workers))\n"
            "os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    pids = (tmp_path / "pids").read_text().split()
    deadline = time.monotonic() + 20
    while any(_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 and not any(_running(pid) for pid in pids)


def _running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_package_imports_neither_torch_nor_sympy():
    code = "import sys, srpo.rewards.worker; sys.exit(bool({'torch', 'sympy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0
