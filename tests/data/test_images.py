"""Crops by value, and image files that no specification says how to read."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from pictures import picture, sixteen_bit
from PIL import Image

from repro.data import images
from repro.data.images import CROPS, read_image
from repro.errors import CorruptData, UsageError


def gradient(width: int, height: int) -> Image.Image:
    """Red counts columns, green counts rows."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def as_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_of_the_right_size_is_untouched_by_resize() -> None:
    pixels = read_image(as_png(gradient(16, 16)), "resize", 16, 3)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.uint8
    assert pixels[0, 5].tolist() == list(range(16)) and pixels[1, :, 5].tolist() == list(range(16))


def test_center_crop_keeps_the_middle() -> None:
    """9 wide, 4 high, no resize needed: columns (9 - 4) // 2 = 2 to 5 of all rows."""
    pixels = read_image(as_png(gradient(9, 4)), "center-crop", 4, 3)
    assert pixels[0, 0].tolist() == [2, 3, 4, 5] and pixels[1, :, 0].tolist() == [0, 1, 2, 3]


def test_dhariwal_halves_by_a_box_then_crops() -> None:
    """12 x 8 at 4: the shorter side is 2 x 4, so one halving to 6 x 4; then columns 1 to 4, each a mean of two."""
    pixels = read_image(as_png(gradient(12, 8)), "dhariwal", 4, 3)
    # the means of columns 2k and 2k+1 are 2k + 0.5, which the filter rounds up
    assert pixels[0, 0].tolist() == [3, 5, 7, 9] and pixels[1, :, 0].tolist() == [1, 3, 5, 7]


def test_celeba_takes_the_middle_of_aligned_images_only() -> None:
    pixels = read_image(as_png(gradient(178, 218)), "celeba", 128, 3)
    assert pixels[0, 0, [0, 127]].tolist() == [25, 152] and pixels[1, [0, 127], 0].tolist() == [57, 184]
    with pytest.raises(CorruptData, match="178x218 is not the aligned|218x178 is not the aligned"):
        read_image(as_png(gradient(218, 178)), "celeba", 64, 3)


def test_center_crop_wide_pastes_into_black() -> None:
    """16 x 12 into 8 x 6: round(8 12 / 16) = 6 of 12 rows are kept, from row 3; then rows 1 to 6 of the square."""
    rows = np.zeros((12, 16, 3), dtype=np.uint8)
    rows[3:9] = 255
    pixels = read_image(as_png(Image.fromarray(rows)), "center-crop-wide:6", 8, 3)
    assert pixels.shape == (3, 8, 8)
    assert pixels[0, :, 0].tolist() == [0, 255, 255, 255, 255, 255, 255, 0]
    white = Image.new("RGB", (16, 12), (255, 255, 255))
    with pytest.raises(CorruptData, match="too small"):
        read_image(as_png(white), "center-crop-wide:14", 16, 3)


def test_an_unknown_mode_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'center-crop'"):
        images.crop_function("centre-crop")
    with pytest.raises(UsageError, match="center-crop-wide"):
        images.crop_function("center-crop-wide:x")


@pytest.mark.parametrize("crop", sorted(CROPS))
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "LA", "1"])
def test_colour_modes_are_converted_where_a_specification_says_so(crop: str, mode: str) -> None:
    """EDM replicates grey when it crops, and converts nothing else; EDM2, DiT and U-ViT take everything as RGB."""
    form = "TIFF" if mode in ("CMYK", "LA") else "PNG"
    content = picture(3, (178, 218), mode, form)
    converts = crop in ("dhariwal", "celeba") or (crop == "center-crop" and mode in ("L", "1"))
    if converts:
        assert read_image(content, crop, 8, 3).shape == (3, 8, 8)
    else:
        with pytest.raises(CorruptData, match=f"a {mode} image, RGB expected"):
            read_image(content, crop, 8, 3)
    assert read_image(content, crop, 8, 3, convert=True).shape == (3, 8, 8)


def test_grey_is_replicated_not_weighted() -> None:
    grey = as_png(gradient(8, 8).convert("L"))
    pixels = read_image(grey, "center-crop", 8, 3)
    assert np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
    assert np.array_equal(read_image(grey, "center-crop", 8, 1)[0], pixels[0])


@pytest.mark.parametrize("convert", [False, True])
def test_sixteen_bits_are_refused_everywhere(convert: bool) -> None:
    for crop in CROPS:
        with pytest.raises(CorruptData, match="more than 8 bits"):
            read_image(sixteen_bit(), crop, 8, 3, convert)


def cut_in_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    return content[:60] + bytes([content[60] ^ 0xFF]) + content[61:]


@pytest.mark.parametrize("damage", [cut_in_half, flipped, lambda content: b"", lambda content: b"not an image"])
@pytest.mark.parametrize("crop", sorted(CROPS))
def test_damaged_files_are_refused(damage: Callable[[bytes], bytes], crop: str) -> None:
    with pytest.raises(CorruptData, match="unreadable image") as caught:
        read_image(damage(picture(0, (178, 218))), crop, 8, 3)
    assert "\n" not in str(caught.value)


def test_a_truncated_jpeg_is_refused() -> None:
    with pytest.raises(CorruptData, match="unreadable image"):
        read_image(picture(0, (178, 218), "RGB", "JPEG")[:-900], "dhariwal", 8, 3)
