"""An interrupt ends a command, also where Python cannot pass its exception on."""

import gc
import signal
import time

import pytest

from qwen3_jax.cli.exit_codes import INTERRUPTED, TERMINATED, guarded
from qwen3_jax.errors import Interrupted


def _in_the_garbage_collector(act):
    """Call `act` once in a callback of the collector, as a signal's handler may be."""

    def callback(*_):
        gc.callbacks.remove(callback)
        act()

    gc.callbacks.append(callback)
    gc.collect()


def _in_a_destructor(act):
    class Last:
        def __del__(self):
            act()

    Last()


@pytest.mark.parametrize("place", [_in_the_garbage_collector, _in_a_destructor])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_inside_a_callback_ends_the_command(place, number, capfd):
    def stop(*_):
        raise Interrupted("stopped in phase 'x'")

    def work():
        if number == signal.SIGTERM:
            signal.signal(number, stop)
        place(lambda: signal.raise_signal(number))
        time.sleep(10)
        return 0

    before = signal.getsignal(signal.SIGTERM)
    try:
        code = guarded("prog", work)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == (INTERRUPTED if number == signal.SIGINT else TERMINATED)
    assert "Traceback" not in capfd.readouterr().err
