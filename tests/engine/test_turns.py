"""The model's thread: one piece of work at a time, always in the same thread, by deaths."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from reembed.engine.turns import CALLER, ModelThread


def test_all_work_is_done_in_one_thread_one_piece_at_a_time():
    turns, at_once, most = ModelThread(), [], []

    def work() -> int:
        at_once.append(1)
        most.append(len(at_once))
        at_once.pop()
        return threading.get_ident()

    with ThreadPoolExecutor(8) as pool:
        threads = set(pool.map(lambda _: turns.run(work), range(50)))
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert set(most) == {1}
    assert CALLER.run(threading.get_ident) == threading.get_ident()


def test_of_units_that_wait_the_one_with_fewest_deaths_is_next():
    turns, order, go_on = ModelThread(), [], threading.Event()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(turns.run, go_on.wait)
        waiting = []
        for deaths in (3, 0, 2, 0):
            waiting.append(pool.submit(turns.run, lambda d=deaths: order.append(d), deaths))
            while len(turns._waiting) < len(waiting):
                pass
        go_on.set()
        assert first.result(10)
        for one in waiting:
            one.result(10)
    assert order == [0, 0, 2, 3]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_what_the_work_raises_is_raised_where_it_is_waited_for_and_the_thread_goes_on(error):
    turns = ModelThread()

    def fails() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        turns.run(fails)
    assert raised.value is error
    assert turns.run(lambda: 1) == 1
