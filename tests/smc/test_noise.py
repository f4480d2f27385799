"""Uniforms by address, and the generator behind them."""

import numpy as np
import pytest
import torch
from scipy import stats

from tsmc_widgets.smc.noise import AddressedNoise, Noise, SliceNoise, philox


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


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, words):
    low, high = hexadecimal(key)
    column = np.array(hexadecimal(counter), dtype=np.uint64)[:, None]
    found = philox(np.repeat(column, 3, axis=1), low | high << 32)
    assert found.T.tolist() == [hexadecimal(words)] * 3


def test_a_uniform_is_53_bits_of_two_words():
    a, b, c, d = hexadecimal(KNOWN_ANSWERS[0][2])
    expected = [((x >> 5) * 2**26 + (y >> 6)) / 2**53 for x, y in ((a, b), (c, d))]
    assert uniforms(num_runs=1, step=0, num_particles=2).tolist() == [expected]


@pytest.mark.parametrize("use", ["token", "resample"])
@pytest.mark.parametrize("first_run", [0, 7, 2**32 - 2, 2**40])
def test_the_address_is_the_counter(use, first_run):
    seed, step = 0x1234_5678_9ABC_DEF0, 11
    found = uniforms(seed, 3, first_run, step=step, use=use, num_particles=6)
    for run in range(3):
        for pair in range(3):
            address = divmod(first_run + run, 2**32)[::-1]
            counter = [pair, 2 * step + (use == "resample"), *address]
            words = philox(np.array(counter, dtype=np.uint64)[:, None], seed)[:, 0].tolist()
            expected = [((x >> 5) * 2**26 + (y >> 6)) / 2**53 for x, y in (words[:2], words[2:])]
            assert found[run, 2 * pair : 2 * pair + 2].tolist() == expected


@pytest.mark.parametrize("num_particles", [1, 2, 5, 8])
@pytest.mark.parametrize("first_run", [0, 3, 2**32 - 3])
def test_a_run_of_many_is_that_run_alone(first_run, num_particles):
    together = uniforms(9, 6, first_run, num_particles=num_particles)
    for run in range(6):
        alone = uniforms(9, 1, first_run + run, num_particles=num_particles)
        assert torch.equal(together[run : run + 1], alone)


def test_fewer_particles_have_the_first_uniforms():
    assert torch.equal(uniforms(num_particles=7)[:, :4], uniforms(num_particles=4))
    assert torch.equal(uniforms(num_particles=7)[:, :3], uniforms(num_particles=3))


def test_the_same_address_gives_the_same_bytes():
    noise = AddressedNoise(4, 2)
    first = noise.uniform(step=3, use="token", num_particles=9)
    noise.uniform(step=1, use="resample", num_particles=9)
    first_again = noise.uniform(step=3, use="token", num_particles=9)
    assert torch.equal(first, first_again)
    first.zero_()
    assert torch.equal(noise.uniform(step=3, use="token", num_particles=9), first_again)


def test_every_part_of_the_address_matters():
    parts = [
        {},
        {"seed": 1},
        {"seed": 2**32},
        {"seed": 2**64 - 1},
        {"first_run": 100},
        {"first_run": 2**32},
        {"step": 2},
        {"use": "resample"},
        {"step": 2, "use": "resample"},
    ]
    values = torch.cat([uniforms(**part).flatten() for part in parts])
    assert len(values.unique()) == len(values) == 15 * len(parts)


def test_type_shape_and_range():
    values = uniforms(num_runs=300, num_particles=333)
    assert isinstance(AddressedNoise(0, 1), Noise)
    assert values.shape == (300, 333)
    assert values.dtype == torch.float64
    assert 0 <= values.min() <= values.max() < 1
    assert torch.equal((values * 2**53).round() / 2**53, values)


@pytest.mark.parametrize("use", ["token", "resample"])
def test_uniformity(use):
    values = uniforms(2024, 400, use=use, step=5, num_particles=500).numpy()
    assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-6
    # The lowest bits count as well: of 53, those a float32 would lose.
    assert stats.kstest(values.ravel() * 2**40 % 1.0, "uniform").pvalue > 1e-6


NEIGHBOURS = {
    "particles": lambda: (uniforms(3, 400, num_particles=500)[:, 0::2],
                          uniforms(3, 400, num_particles=500)[:, 1::2]),
    "pairs": lambda: (uniforms(3, 400, num_particles=500)[:, :-2],
                      uniforms(3, 400, num_particles=500)[:, 2:]),
    "runs": lambda: (uniforms(3, 400, num_particles=500)[:-1],
                     uniforms(3, 400, num_particles=500)[1:]),
    "steps": lambda: (uniforms(3, 400, step=1, num_particles=500),
                      uniforms(3, 400, step=2, num_particles=500)),
    "uses": lambda: (uniforms(3, 400, num_particles=500),
                     uniforms(3, 400, use="resample", num_particles=500)),
    "seeds": lambda: (uniforms(3, 400, num_particles=500), uniforms(4, 400, num_particles=500)),
}  # fmt: skip


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_neighbouring_addresses_are_independent(what):
    a, b = (values.flatten() for values in NEIGHBOURS[what]())
    product = 12 * (a - 0.5) * (b - 0.5)
    assert abs(float(product.mean()) * len(a) ** 0.5) < 4.5
    cells = ((8 * a).long() * 8 + (8 * b).long()).bincount(minlength=64)
    # Disjoint pairs only, so that the counts are independent.
    if what not in ("pairs", "runs"):
        assert stats.chisquare(cells.numpy()).pvalue > 1e-6


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
