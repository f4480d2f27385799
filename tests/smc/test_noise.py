"""Uniforms by address, and the generator behind them."""

import numpy as np
import pytest
import torch
from scipy import stats

from tsmc_widgets.smc.noise import AddressedNoise, SliceNoise, philox


def hexadecimal(words):
    return [int(word, 16) for word in words.split()]


# Of the authors' library Random123: counter, key, random words.
KNOWN_ANSWERS = [
    ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def uniforms(seed=0, num_runs=3, first_run=0, *, step=1, use="token", num_particles=5):
    noise = AddressedNoise(seed, num_runs, first_run)
    return noise.uniform(step=step, use=use, num_particles=num_particles)


def bits(high, low):
    """53 bits of two words as a number in [0, 1)."""
    return ((high >> np.uint64(5)) * np.uint64(2**26) + (low >> np.uint64(6))) / 2**53


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, words):
    low, high = hexadecimal(key)
    column = np.array(hexadecimal(counter), dtype=np.uint64)[:, None]
    found = philox(np.repeat(column, 3, axis=1), low | high << 32)
    assert found.T.tolist() == [hexadecimal(words)] * 3


@pytest.mark.parametrize("use", ["token", "resample"])
@pytest.mark.parametrize("first_run", [0, 7, 2**32 - 2, 2**40])
@pytest.mark.parametrize("num_particles", [1, 2, 5, 8, 5000])
def test_the_address_is_the_counter(use, first_run, num_particles):
    """A run of many is that run alone; fewer particles have the first uniforms of more."""
    seed, step = 0x1234_5678_9ABC_DEF0, 11
    found = uniforms(seed, 3, first_run, step=step, use=use, num_particles=num_particles)
    assert (found.dtype, found.shape) == (torch.float64, (3, num_particles))
    for run in range(3):
        counter = np.empty((4, (num_particles + 1) // 2), dtype=np.uint64)
        counter[0], counter[1] = np.arange(counter.shape[1]), 2 * step + (use == "resample")
        counter[3], counter[2] = divmod(first_run + run, 2**32)
        a, b, c, d = philox(counter, seed)
        expected = np.stack([bits(a, b), bits(c, d)], axis=1).ravel()
        assert found[run].tolist() == expected[:num_particles].tolist()


def test_the_same_address_gives_the_same_bytes():
    noise = AddressedNoise(4, 2)
    first = noise.uniform(step=3, use="token", num_particles=9)
    noise.uniform(step=1, use="resample", num_particles=9)
    first_again = noise.uniform(step=3, use="token", num_particles=9)
    assert torch.equal(first, first_again)
    first.zero_()
    assert torch.equal(noise.uniform(step=3, use="token", num_particles=9), first_again)


@pytest.mark.parametrize("use", ["token", "resample"])
def test_uniformity(use):
    values = uniforms(2024, 400, use=use, step=5, num_particles=500).numpy()
    assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-6
    # The lowest bits count as well: of 53, those a float32 would lose.
    assert stats.kstest(values.ravel() * 2**40 % 1.0, "uniform").pvalue > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 1), "seed must be an integer of at least 0; got -1"),
        ((2**64, 1), r"seed must be an integer below 2\*\*64; got 18446744073709551616"),
        ((0, 0), "num_runs must be an integer of at least 1; got 0"),
        ((0, 1, -2), "first_run must be an integer of at least 0; got -2"),
    ],
)
def test_addresses_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AddressedNoise(*arguments)


def test_a_slice_is_a_part_of_the_whole():
    whole = AddressedNoise(seed=3, num_runs=2)
    there = {"step": 4, "use": "token"}
    parts = [SliceNoise(whole, first).uniform(num_particles=3, **there) for first in (0, 3, 6)]
    assert torch.equal(torch.cat(parts, dim=1), whole.uniform(num_particles=9, **there))
