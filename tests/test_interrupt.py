"""A first signal is a request; a second one acts as if nobody had listened."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from clebsch import interrupt
from clebsch.interrupt import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_a_request_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as request:
        assert not request.received
        signal.raise_signal(number)
        assert request.received
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_interrupts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "GRACE", 0.0)
    with stop_on_signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_key_pressed_twice_is_one_request() -> None:
    with stop_on_signals() as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert request.received


def test_outside_the_main_thread_nothing_is_caught() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_on_signals() as request:
            seen.append(request.received)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize(("seconds", "over"), [(-1.0, True), (1000.0, False)])
def test_the_end_of_the_time_is_a_request(seconds: float, over: bool) -> None:
    with stop_on_signals(time.monotonic() + seconds) as request:
        assert request.received == over
