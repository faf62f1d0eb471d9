from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.slides.tiffs import halved, noise, spy_on, write_tiff
from wsi_idc.slides.slide import Slide, open_slide
from wsi_idc.view.tiles import ByteCache, PictureReader, TiledSlide


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """Return a picture that JPEG keeps well."""
    return cv2.resize(noise(height // 50, width // 50, seed=3), (width, height))


def decode(jpeg: bytes) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def in_memory(picture: NDArray[np.uint8]) -> TiledSlide:
    return TiledSlide(Slide(Path("p"), PictureReader(picture), mpp=1.0, mpp_source="map"))


def joined(tiles: TiledSlide, level: int, cols: int, rows: int) -> NDArray[np.uint8]:
    """Join tiles; at inner edges, leave out the px that the next tile has too."""
    grid = [
        [decode(tiles.jpeg(level, c, r))[r > 0 :, c > 0 :][:254, :254] for c in range(cols)]
        for r in range(rows)
    ]
    return np.concatenate([np.concatenate(row, axis=1) for row in grid])


def test_the_finest_tiles_are_the_pixels_of_the_slide(tmp_path: Path):
    picture = smooth(700, 1000)
    slide = open_slide(write_tiff(tmp_path / "s.tif", picture, halved(picture), mpp=0.5))
    with slide:
        tiles = TiledSlide(slide)
        assert tiles.max_level == 10  # 1024 px
        found = joined(tiles, 10, 4, 3)
        assert found.shape == picture.shape
        assert np.abs(found.astype(int) - picture).mean() < 1
        half = joined(tiles, 9, 2, 2)
        assert half.shape == (350, 500, 3)
        assert np.abs(half.astype(int) - halved(picture)).mean() < 1.5
        assert decode(tiles.jpeg(8, 0, 0)).shape == (175, 250, 3)
        assert decode(tiles.jpeg(0, 0, 0)).shape == (1, 1, 3)


def test_coarse_levels_of_the_slide_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture = smooth(700, 1000)
    path = write_tiff(tmp_path / "s.tif", picture, halved(picture), halved(halved(picture)), mpp=1)
    with open_slide(path) as slide:
        reads = spy_on(slide, monkeypatch)
        tiles = TiledSlide(slide)
        tiles.jpeg(10, 3, 2)
        tiles.jpeg(9, 1, 1)
        tiles.jpeg(8, 0, 0)
        tiles.jpeg(7, 0, 0)
    assert reads == [
        (0, 761, 507, 239, 193),
        (1, 253, 253, 247, 97),
        (2, 0, 0, 250, 175),
        (2, 0, 0, 250, 176),
    ]


def test_a_side_that_cannot_be_halved_is_rounded_up():
    picture = np.full((5, 513, 3), 100, np.uint8)
    tiles = in_memory(picture)
    assert tiles.max_level == 10
    assert [decode(tiles.jpeg(10, col, 0)).shape[1] for col in range(3)] == [255, 256, 6]
    assert [decode(tiles.jpeg(9, col, 0)).shape for col in range(2)] == [(3, 255, 3), (3, 4, 3)]
    assert np.abs(decode(tiles.jpeg(9, 0, 0))[0].astype(int) - 100).max() <= 1


def test_coarse_tiles_of_a_large_slide_without_levels_come_from_a_thumbnail(
    monkeypatch: pytest.MonkeyPatch,
):
    picture = np.zeros((40, 9000, 3), np.uint8)
    picture[:, 4500:] = 255
    tiles = in_memory(picture)
    reads = spy_on(tiles.slide, monkeypatch)
    tile = decode(tiles.jpeg(9, 0, 0))  # 32 times as coarse
    assert tile.shape == (2, 255, 3)
    assert (tile[0, :130].max(), tile[0, 145:].min()) == (0, 255)
    assert all(width <= 1024 * 17 for *_, width, _ in reads)
    reads.clear()
    decode(tiles.jpeg(8, 0, 0))
    assert reads == []  # the thumbnail is read once


@pytest.mark.parametrize("place", [(11, 0, 0), (10, 4, 0), (10, 0, 3), (9, 2, 0)])
def test_there_are_no_other_tiles(place: tuple[int, int, int]):
    with pytest.raises(LookupError):
        in_memory(np.zeros((700, 1000, 3), np.uint8)).jpeg(*place)


def test_a_picture_is_white_outside():
    picture = noise(30, 40)
    reader = PictureReader(picture)
    region = reader.read(0, -5, 10, width=50, height=30)
    np.testing.assert_array_equal(region[:20, 5:45], picture[10:])
    assert region.shape == (30, 50, 3)
    assert (region[20:].min(), region[:, :5].min(), region[:, 45:].min()) == (255, 255, 255)
    assert reader.read(0, 60, 60, width=2, height=3).min() == 255


def test_the_cache_keeps_what_was_used_last():
    cache, made = ByteCache(10), []

    def get(key: str, size: int = 4) -> bytes:
        return cache.get(key, lambda: (made.append(key), bytes(size))[1])

    for key in "abab":
        get(key)
    assert made == ["a", "b"]
    get("c")  # "a" is dropped
    get("b")
    assert made == ["a", "b", "c"]
    get("a")
    assert made == ["a", "b", "c", "a"]
    assert len(get("large", 11)) == 11  # too large to keep
    get("large", 11)
    assert made[-2:] == ["large", "large"]


def test_threads_share_the_cache():
    cache = ByteCache(1000)

    def work() -> None:
        for at in range(200):
            assert cache.get(at % 20, lambda at=at: bytes([at % 20]) * 100)[0] == at % 20

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache._num_bytes == sum(map(len, cache._items.values())) <= 1000
