"""Signals are answered while the core works."""

import signal
import time

import pytest
import torch
from core_data import random_gram, random_weight

from mlcalib import _core as core


@pytest.fixture(scope="module")
def long_work():
    """Return a solve that takes some tenths of a second, whatever the processor."""
    weight, gram = random_weight(64, 512), random_gram(512)
    spent = 0.0
    while spent < 0.4:
        weight = torch.cat([weight, weight])
        start = time.perf_counter()
        core.gptq(weight, gram)
        spent = time.perf_counter() - start
    return lambda: core.gptq(weight, gram)


@pytest.fixture
def alarms():
    """Return what lets alarms come every tenth of a second, answered by a function."""
    before = signal.getsignal(signal.SIGALRM)

    def start(answer):
        signal.signal(signal.SIGALRM, lambda *_: answer())
        signal.setitimer(signal.ITIMER_REAL, 0.06, 0.06)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_signals_are_answered_while_a_solve_runs(alarms, long_work):
    """Without that the answers to all alarms would be one, when the solve returns."""
    answered = []
    alarms(lambda: answered.append(1))
    long_work()
    assert len(answered) > 1


def test_an_interrupt_ends_a_solve_and_harms_nothing(alarms, long_work):
    def interrupt():
        signal.setitimer(signal.ITIMER_REAL, 0)  # a second one would find nobody who expects it
        raise KeyboardInterrupt

    def interrupted():
        alarms(interrupt)
        long_work()

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    weight, gram = random_weight(32, 64), random_gram(64)
    assert torch.equal(core.gptq(weight, gram).codes, core.gptq(weight, gram).codes)
