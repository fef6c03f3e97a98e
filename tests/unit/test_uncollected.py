"""The collector rests while many small objects are made, and goes on afterwards."""

from __future__ import annotations

import gc

import pytest

from k8snet.linux.uncollected import uncollected


def test_it_rests_in_the_block_and_goes_on_after_an_error_too():
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), uncollected():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_of_two_blocks_the_outer_one_starts_it_again():
    with uncollected():
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_off():
    gc.disable()
    try:
        with uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
