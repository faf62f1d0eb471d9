import numpy as np

from wsi_idc.data.normalization import channel_histogram, channel_statistics


def test_mean_and_std_are_those_of_numpy():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (7, 50, 50, 3), dtype=np.uint8)
    patches[..., 1] //= 4
    mean, std = channel_statistics(channel_histogram(patches))
    scaled = patches / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_order_and_blocks_change_nothing():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    whole = channel_histogram(patches)
    assert whole.shape == (3, 256)
    assert np.array_equal(whole, channel_histogram(patches[5:]) + channel_histogram(patches[:5]))
    assert np.array_equal(whole, channel_histogram(patches[::-1]))


def test_one_colour_has_no_spread():
    for value in range(256):
        histogram = channel_histogram(np.full((3, 5, 5, 3), value, np.uint8))
        mean, std = channel_statistics(histogram)
        np.testing.assert_allclose(mean, value / 255, rtol=1e-12)
        assert std == (0, 0, 0)
