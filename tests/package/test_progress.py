"""Progress lines: the arithmetic by hand, when they are printed, and when a bar is shown."""

from __future__ import annotations

import io
import sys
import types

import pytest

from rlhf_helpers.progress import (
    Progress,
    duration,
    in_live_notebook,
    is_interactive,
    told_left,
)


class FakeClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("RLHF_PLAIN_PROGRESS", "RLHF_QUIET_PROGRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_line_shows_count_pace_time_left_and_fields(clock, stream):
    progress = Progress(40, "PPO", stream=stream, clock=clock)
    clock.now += 25.2  # 12 steps in 25.2 s: 2.1 s each, and 28 steps left take 58.8 s
    progress.update(done=12, reward=0.6123)
    assert stream.getvalue() == "PPO 12/40 · 30 % · 2.1 s/step · 0:59 left · reward 0.612\n"


@pytest.mark.parametrize("seconds, left", [(1.0, 39), (2.1, 82), (300.0, 11700)])
def test_what_a_line_tells_can_be_read_again(clock, stream, seconds, left):
    progress = Progress(40, "Reward model", stream=stream, clock=clock)
    clock.now += seconds
    progress.update(reward=0.61)
    assert told_left(progress.line()) == ("Reward model", left)
    assert told_left("    " + progress.line() + "\n") == ("Reward model", left)


@pytest.mark.parametrize(
    "line", ["", "round  1 of 14  0.53 ██", "reading 3 · 2.0 s/file · 0:06 so far",
             "… 04_ppo_run in cell 40 of 45 · 3:20 · about 0:27 left in all"],
)  # fmt: skip
def test_other_lines_tell_no_time(line):
    assert told_left(line) is None


def test_fast_work_shows_units_per_second(clock, stream):
    progress = Progress(1000, "scoring", unit="sample", stream=stream, clock=clock)
    clock.now += 4.0  # 500 in 4 s: 125 a second, the other 500 take 4 s
    progress.update(n=500)
    assert stream.getvalue() == "scoring 500/1000 · 50 % · 125.0 sample/s · 0:04 left\n"


def test_resumed_work_is_left_out_of_the_estimate(clock, stream):
    progress = Progress(100, "PPO", done=90, stream=stream, clock=clock)
    clock.now += 10.0
    progress.update(n=5)  # 5 steps in 10 s, so the last 5 take 10 s (not 10 / 95 * 5 = 0.5 s)
    assert "PPO 95/100 · 95 % · 2.0 s/step · 0:10 left" in stream.getvalue()


def test_unknown_total_gives_no_estimate(clock, stream):
    progress = Progress(None, "reading", unit="file", stream=stream, clock=clock)
    clock.now += 6.0
    progress.update(n=3)
    assert stream.getvalue() == "reading 3 · 2.0 s/file · 0:06 so far\n"


def test_first_line_after_two_seconds_then_every_five(clock, stream):
    progress = Progress(100, "PPO", stream=stream, clock=clock)
    printed_at = []
    for _ in range(15):
        clock.now += 1.0
        before = stream.getvalue()
        progress.update()
        if stream.getvalue() != before:
            printed_at.append(clock.now - 100.0)
    assert printed_at == [2.0, 7.0, 12.0]


def test_short_work_prints_nothing(clock, stream):
    with Progress(3, "PPO", stream=stream, clock=clock) as progress:
        for _ in range(3):
            clock.now += 0.5
            progress.update()
    assert stream.getvalue() == ""


def test_close_prints_the_end_once_if_lines_were_printed(clock, stream):
    progress = Progress(4, "PPO", stream=stream, clock=clock)
    clock.now += 3.0
    progress.update(n=3)
    progress.update(n=1)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "PPO 3/4 · 75 % · 1.0 s/step · 0:01 left",
        "PPO 4/4 · 100 % · 1.3 step/s · 0:00 left",
    ]


def test_more_work_than_announced_never_leaves_negative_time(clock, stream):
    progress = Progress(2, "PPO", stream=stream, clock=clock)
    clock.now += 6.0
    progress.update(n=3)
    assert "0:00 left" in stream.getvalue()


def test_update_before_any_time_has_passed(clock, stream):
    progress = Progress(2, "PPO", every_seconds=0.0, stream=stream, clock=clock)
    progress.update()
    assert stream.getvalue() == "PPO 1/2 · 50 % · 0:00 left\n"


@pytest.mark.parametrize(("seconds", "shown"), [
    (0, "0:00"), (59.4, "0:59"), (59.5, "1:00"), (61, "1:01"), (3599.6, "1:00:00"),
    (3661, "1:01:01"), (90000, "25:00:00"),
])
def test_duration(seconds, shown):
    assert duration(seconds) == shown


def test_quiet_by_argument_and_by_environment(clock, monkeypatch):
    def shown(**kwargs) -> str:
        stream = io.StringIO()
        with Progress(2, "PPO", stream=stream, clock=clock, **kwargs) as progress:
            clock.now += 10.0
            progress.update()
        return stream.getvalue()

    assert shown() != ""
    assert shown(quiet=True) == ""
    monkeypatch.setenv("RLHF_QUIET_PROGRESS", "1")
    assert shown() == ""
    assert shown(quiet=False) != ""


def test_terminal_gets_a_bar_unless_lines_are_asked_for(monkeypatch):
    def shown() -> str:
        stream = Terminal()
        with Progress(2, "PPO", stream=stream) as progress:
            progress.update(reward=0.5)
        return stream.getvalue()

    assert "\r" in shown() and "reward=0.5" in shown()
    monkeypatch.setenv("RLHF_PLAIN_PROGRESS", "1")
    assert shown() == ""


def test_only_a_kernel_that_someone_watches_is_live(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    assert not in_live_notebook()
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    assert in_live_notebook() and is_interactive()
    monkeypatch.setenv("RLHF_PLAIN_PROGRESS", "1")
    assert not is_interactive()
    monkeypatch.delenv("RLHF_PLAIN_PROGRESS")
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert not in_live_notebook()
