import numpy as np

from a2mim.data import keyed


def splitmix64(state: int) -> int:
    """Steele, Lea, Flood (2014), in Python integers."""
    wrap = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & wrap
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & wrap
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & wrap
    return z ^ (z >> 31)


def test_hashes_equal_a_slow_reference():
    seed, epoch, stream, keys = 7, 2, keyed.ORDER, [0, 1, 2**64 - 1]
    base = 0
    for number in (seed, epoch, stream):
        base = splitmix64(base ^ number)
    expected = [
        [splitmix64((splitmix64(key ^ base) + draw * 0xD1B54A32D192ED03) % 2**64) for draw in range(4)] for key in keys
    ]
    assert keyed.hashes(seed, epoch, np.array(keys, np.uint64), 4, stream).tolist() == expected


def test_splitmix64_gives_its_published_first_number():
    """The first output for seed 1234567 in the reference implementation, https://prng.di.unimi.it/splitmix64.c."""
    assert splitmix64(1234567) == 6457827717110365317


def test_a_number_depends_on_its_own_key_only():
    keys = np.arange(50, dtype=np.uint64)
    together = keyed.uniforms(1, 2, keys, 5)
    assert np.array_equal(together[17], keyed.uniforms(1, 2, keys[17:18], 5)[0])
    assert np.array_equal(together[:, :2], keyed.uniforms(1, 2, keys, 2))


def test_uniforms_are_uniform_and_uncorrelated():
    u = keyed.uniforms(0, 0, np.arange(20_000), 4)
    assert u.min() >= 0 and u.max() < 1
    assert np.abs(np.histogram(u[:, 0], 10, (0, 1))[0] - 2000).max() < 5 * np.sqrt(1800)
    near = np.concatenate(
        [u, keyed.uniforms(0, 1, np.arange(20_000), 4), keyed.uniforms(1, 0, np.arange(20_000), 4)], 1
    )
    correlation = np.corrcoef(near.T) - np.eye(12)
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)
