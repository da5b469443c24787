"""Tests that send Ctrl-C need processes that heed it, however the tests themselves were started."""

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell that runs us in the background has us ignore Ctrl-C, and so everything that we start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
