"""Image files -> square uint8 arrays: decoding, colour modes, and the resize and crop modes of the papers.

Every mode is named, because two data sets that differ in it are different data sets: the "ImageNet-64" of Karras et al.
2022 and that of Karras et al. 2024 share no image.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from repro.errors import CorruptData, UsageError
from repro.suggest import suggest

Pixels = npt.NDArray[np.uint8]  # (H, W, C) or (H, W)

CELEBA_SIZE = (178, 218)  # width and height of the aligned images
CELEBA_BOX = (25, 57, 153, 185)  # left, top, right, bottom: the centre (121, 89) +- 64 of row and column


def resize(image: Image.Image, resolution: int) -> Image.Image:
    """Lanczos to R x R without a crop; an image of that size is untouched (Karras et al. 2022, FFHQ and AFHQv2)."""
    return image if image.size == (resolution, resolution) else _lanczos(image, resolution, resolution)


def center_crop(image: Image.Image, resolution: int) -> Image.Image:
    """The central square of the shorter side, then Lanczos to R x R (ImageNet-64 of Karras et al. 2022; MS-COCO)."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return _lanczos(_to_rgb(image).crop((left, top, left + side, top + side)), resolution, resolution)


def center_crop_wide(image: Image.Image, width: int, height: int) -> Image.Image:
    """round(w H / W) rows about the centre and all columns, Lanczos to w x h, centred in a black w x w square.

    Args:
        image: W x H pixels.
        width, height: w and h.

    Raises:
        ValueError: the image is smaller than that.
    """
    kept = round(width * image.height / image.width)
    if image.width < width or kept < height:
        raise ValueError(f"{image.width}x{image.height} is too small for {width}x{height}")
    top, bottom = (image.height - kept) // 2, (image.height + kept) // 2
    small = _lanczos(_to_rgb(image).crop((0, top, image.width, bottom)), width, height)
    canvas = Image.new("RGB", (width, width))
    canvas.paste(small, (0, (width - height) // 2))
    return canvas


def dhariwal(image: Image.Image, resolution: int) -> Image.Image:
    """The crop of Dhariwal and Nichol 2021, which EDM2, DiT, U-DiT and U-ViT use for ImageNet.

    While the shorter side is 2 R or more, both sides are halved by a box filter; then the shorter side becomes R by a
    bicubic resize, and the centre is cut out. Both filters are Pillow's, antialiased.
    """
    image = image.convert("RGB")
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))


def celeba(image: Image.Image, resolution: int) -> Image.Image:
    """Rows 57..184, columns 25..152 of an aligned 178 x 218 image, then antialiased bilinear to R x R (U-ViT).

    Raises:
        ValueError: an image of another size.
    """
    if image.size != CELEBA_SIZE:
        raise ValueError(f"{image.width}x{image.height} is not the aligned CelebA's 178x218")
    return image.convert("RGB").crop(CELEBA_BOX).resize((resolution, resolution), Image.Resampling.BILINEAR)


def _wide(height: int) -> Callable[[Image.Image, int], Image.Image]:
    return lambda image, resolution: center_crop_wide(image, resolution, height)


CROPS: dict[str, Callable[[Image.Image, int], Image.Image]] = {
    "resize": resize,
    "center-crop": center_crop,
    "dhariwal": dhariwal,
    "celeba": celeba,
}
CROP_NAMES = (*CROPS, "center-crop-wide:HEIGHT")

# Colour modes that a specification converts. Karras et al. 2022 replicate grey in center crops and convert nothing
# else; EDM2, DiT and U-ViT read every file as RGB.
_GREY = {"L", "1"}
_EIGHT_BIT = {*_GREY, "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "P", "LA", "PA", "La", "RGBa"}
_CONVERTED: dict[str, set[str]] = {
    "resize": set(),
    "center-crop": _GREY,
    "center-crop-wide": _GREY,
    "dhariwal": _EIGHT_BIT,
    "celeba": _EIGHT_BIT,
}


def crop_function(crop: str) -> Callable[[Image.Image, int], Image.Image]:
    """The function of a mode's name. Raises UsageError for an unknown one."""
    name, _, height = crop.partition(":")
    if name == "center-crop-wide" and height.isdecimal() and int(height) > 0:
        return _wide(int(height))
    if crop not in CROPS:
        hint = suggest(crop, CROPS) or f"; there are {', '.join(CROP_NAMES)}"
        raise UsageError(f"no crop mode {crop!r}{hint}")
    return CROPS[crop]


def read_image(content: bytes, crop: str, resolution: int, channels: int, convert: bool = False) -> Pixels:
    """One image file as the data set has it.

    Args:
        content: the bytes of a file in any format that Pillow reads.
        crop: mode, see `CROP_NAMES`.
        resolution: R, height and width of the result in pixels.
        channels: C, 1 or 3.
        convert: turn every 8-bit colour mode into RGB (or grey), also where the specification names no conversion.

    Returns:
        (C, R, R) uint8.

    Raises:
        CorruptData: unreadable, truncated, of a colour mode or depth that has no stated conversion, or too small;
            the message says which, without the file's name.
    """
    wanted = "L" if channels == 1 else "RGB"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a large picture or odd metadata is no reason to speak
        try:
            with Image.open(io.BytesIO(content)) as opened:
                opened.load()
                image = _in_mode(opened, crop, wanted, convert)
        except (UnidentifiedImageError, OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise CorruptData(f"unreadable image ({_reason(error)})") from error
        except (ValueError, IndexError, KeyError, TypeError, MemoryError) as error:  # of broken files, by decoder
            raise CorruptData(f"unreadable image ({type(error).__name__}: {error})") from error
    try:
        result = crop_function(crop)(image, resolution)
    except ValueError as error:
        raise CorruptData(f"unusable image: {error}") from error
    result = result if result.mode == wanted else result.convert(wanted)
    pixels = np.asarray(result, dtype=np.uint8).reshape(resolution, resolution, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _in_mode(image: Image.Image, crop: str, wanted: str, convert: bool) -> Image.Image:
    """The image in a mode that the crop takes. Raises CorruptData for one without a stated conversion."""
    if image.mode == wanted:
        return image
    if image.mode not in _EIGHT_BIT:
        raise CorruptData(f"a {image.mode} image (more than 8 bits a channel), which no specification converts")
    if convert or (wanted == "RGB" and image.mode in _CONVERTED[crop.partition(":")[0]]):
        return image.convert(wanted)
    raise CorruptData(
        f"a {image.mode} image, {wanted} expected: the mode {crop!r} converts no such image (--convert does)"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB") if image.mode in _GREY else image


def _lanczos(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return "no image format that Pillow knows" if isinstance(error, UnidentifiedImageError) else text or "truncated"
