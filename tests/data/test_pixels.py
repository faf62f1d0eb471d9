import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.packs import pixels_of, save_png
from wsi_idc.data.patch_store import MAX_FILE_BYTES, FolderStore, UnreadablePatchError
from wsi_idc.data.pixels import channel_histogram, channel_statistics, decode_png

PIXELS = pixels_of("10253", 0, 0)


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def by_hand(
    stream: bytes, *more: bytes, width: int = 50, height: int = 50, depth: int = 8
) -> bytes:
    """Put a PNG together from its compressed stream; every checksum is right."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + header + b"".join(more) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def decode(data: bytes) -> np.ndarray:
    return decode_png(data, patch_px=50)


RAW = b"".join(b"\0" + row.tobytes() for row in PIXELS)
STREAM = zlib.compress(RAW)
PLAIN = png(Image.fromarray(PIXELS))


@pytest.mark.parametrize("size", [(50, 50), (37, 50), (50, 37), (1, 1)])
def test_every_pixel_of_plain_rgb(size):
    pixels = PIXELS[: size[0], : size[1]]
    assert np.array_equal(decode(png(Image.fromarray(pixels))), pixels)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA"])
def test_other_modes(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    assert np.array_equal(decode(png(image)), np.asarray(image.convert("RGB")))


def test_transparency_is_white():
    alpha = np.zeros((50, 50), np.uint8)
    alpha[:25] = 255
    image = Image.fromarray(np.dstack([PIXELS, alpha]))
    expected = np.where(alpha[..., None] == 255, PIXELS, 255)
    assert np.array_equal(decode(png(image)), expected)


def test_colour_named_transparent_is_white():
    key = struct.pack(">HHH", *map(int, PIXELS[3, 4]))
    pixels = decode(by_hand(STREAM, chunk(b"tRNS", key)))
    expected = PIXELS.copy()
    expected[3, 4] = 255
    assert np.array_equal(pixels, expected)


def test_palette_with_transparency():
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    pixels = decode(png(image, transparency=b"\xff\x00\xff\xff"))
    assert pixels.tolist() == [[[10, 20, 30], [255, 255, 255]], [[70, 80, 90], [1, 2, 3]]]


def test_a_camera_orientation_does_not_turn_the_patch():
    exif = Image.Exif()
    exif[0x112] = 6
    assert np.array_equal(decode(png(Image.fromarray(PIXELS), exif=exif)), PIXELS)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"tIME", bytes(7)),
        (b"tEXt", b"a\0b"),
        (b"iCCP", b"a\0\0" + zlib.compress(bytes(200))),
        (b"acTL", struct.pack(">II", 1, 0)),
        (b"gAMA", struct.pack(">I", 10_000)),
    ],
)
def test_chunks_beside_the_pixels_and_bytes_after_the_end_change_nothing(kind, data):
    assert np.array_equal(decode(by_hand(STREAM, chunk(kind, data)) + b"garbage"), PIXELS)


@pytest.mark.parametrize("cut", [1, 7, 8, 20, 32, 33, 40, 1000, len(PLAIN) - 13, len(PLAIN) - 1])
def test_truncated(cut):
    with pytest.raises(UnreadablePatchError, match=r"truncated PNG|no header|not a PNG"):
        decode(PLAIN[:cut])


@given(st.integers(8, len(PLAIN) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at, change):
    damaged = bytearray(PLAIN)
    damaged[at] ^= change
    with pytest.raises(UnreadablePatchError):
        decode(bytes(damaged))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_reason(data):
    for start in (b"", PLAIN[:8], PLAIN[:33]):
        with pytest.raises(UnreadablePatchError):
            decode(start + data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(Image.fromarray(PIXELS[..., 0].astype(np.uint16))), "16 bits per channel"),
        (b"", "empty file"),
        (b"patient,label\n10253,1\n", "not a PNG file"),
        (PLAIN[:50] + bytes([PLAIN[50] ^ 1]) + PLAIN[51:], "a checksum is wrong"),
        (by_hand(STREAM[:3000]), "damaged PNG: "),
        (by_hand(zlib.compress(RAW[:4000])), "damaged PNG: "),
        (by_hand(b""), "damaged PNG: "),
        (by_hand(STREAM, chunk(b"iCCP", b"")), "damaged PNG: "),
        (by_hand(STREAM, width=0), "damaged PNG: the header is not valid"),
        (by_hand(STREAM, depth=3), "damaged PNG: the header is not valid"),
        (by_hand(STREAM, width=51), r"51x50 px is larger than a 50x50 patch"),
        (by_hand(STREAM, height=5000), r"50x5000 px is larger than a 50x50 patch"),
    ],
)
def test_reasons(data, reason):
    with pytest.raises(UnreadablePatchError, match=reason):
        decode(data)


def test_files_that_are_not_a_patch(tmp_path):
    save_png(tmp_path / "huge.png", np.zeros((5000, 5000, 3), np.uint8))
    (tmp_path / "padded.png").write_bytes(PLAIN + bytes(4_000_000))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "folder.png").mkdir()
    for name, reason in {
        "huge": "5000x5000 px is larger",
        "padded": f"more than {MAX_FILE_BYTES} bytes, too large for a patch",
        "pipe": "not a regular file",
        "link": "cannot be read: No such file",
        "folder": "cannot be read: Is a directory",
    }.items():
        with pytest.raises(UnreadablePatchError, match=reason):
            decode(FolderStore(tmp_path.parent).read(f"{tmp_path.name}/{name}.png")[0])


def test_mean_and_std_are_those_of_numpy():
    rng = np.random.default_rng(0)
    patches = rng.integers(0, 256, (7, 50, 50, 3), dtype=np.uint8)
    patches[..., 1] //= 4
    histogram = channel_histogram(patches)
    assert histogram.shape == (3, 256)
    blocks = channel_histogram(patches[5:]) + channel_histogram(patches[4::-1])
    assert np.array_equal(histogram, blocks)
    mean, std = channel_statistics(histogram)
    scaled = patches / 255
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_one_colour_has_no_spread():
    for value in range(256):
        histogram = channel_histogram(np.full((3, 5, 5, 3), value, np.uint8))
        mean, std = channel_statistics(histogram)
        np.testing.assert_allclose(mean, value / 255, rtol=1e-12)
        assert std == (0, 0, 0)
