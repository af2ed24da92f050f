"""PNG, JPEG, TIFF, BMP, GIF and WebP: pictures as they are stored, masks as class values.

Where the meaning would be a guess, the file is refused: a colour profile (CMYK), what lies under transparency, which way an EXIF tag
turns a picture whose mask has no such tag, 16-bit colour that readers cut to 8 bits.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import tifffile
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from samadapt.files import replacing
from samadapt.io.geometry import Geometry
from samadapt.types import Case, SamAdaptError

_GREY = {"1": "uint8", "L": "uint8", "I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
_COLOUR = {"RGB": "uint8", "P": "uint8"}
_CURES = {
    "CMYK": "convert it to RGB with the colour profile that it was made with",
    "RGBA": "remove the transparency (e.g. `magick in.png -alpha off out.png`)",
    "LA": "remove the transparency (e.g. `magick in.png -alpha off out.png`)",
    "PA": "remove the transparency (e.g. `magick in.png -alpha off out.png`)",
}


def read_geometry(path: Path) -> Geometry:
    """The geometry of a picture, read from its header alone."""
    with _open(path) as image:
        return _geometry(image, path)


def _geometry(image: Image.Image, path: Path) -> Geometry:
    _refuse(image, path)
    grey = image.mode in _GREY
    dtype = _GREY[image.mode] if grey else _COLOUR[image.mode]
    return Geometry((image.height, image.width, 1), None, None, 1 if grey else 3, dtype)


def read(path: Path) -> tuple[np.ndarray, Geometry]:
    """(C, rows, columns, 1) float32 as stored; black-and-white becomes 0 and 255, a palette its colours."""
    with _open(path) as file:
        image = _loaded(file, path)
        geometry = _geometry(image, path)
        if image.mode in ("1", "P"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        array = np.asarray(image, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy()
    return array[..., None], geometry


def read_label(path: Path) -> tuple[np.ndarray, Geometry]:
    """(rows, columns, 1) integers as stored: palette indices, grey values; black-and-white becomes 0 and 255."""
    with _open(path) as image:
        if image.mode in ("1", *_GREY, "P"):
            loaded = _loaded(image, path)
            array = np.asarray(loaded.convert("L") if image.mode == "1" or _grey_palette(loaded) else loaded)
        elif image.mode == "RGB":
            colours = np.asarray(_loaded(image, path))
            if np.any(colours != colours[..., :1]):
                raise SamAdaptError(
                    f"{path} is a colour picture; expected a mask of class values: save it as an indexed or grey PNG"
                )
            array = colours[..., 0]
        else:
            raise _mode_error(image.mode, path)
    return array[..., None], Geometry((*array.shape, 1), None, None, 1, str(array.dtype))


def _grey_palette(image: Image.Image) -> bool:
    """Whether a GIF's palette is grey: its indices are then what saving made of them, and the greys are the values."""
    if image.format != "GIF" or image.mode != "P":
        return False
    colours = np.reshape(image.getpalette("RGB") or [0, 0, 0], (-1, 3))
    return bool(np.all(colours == colours[:, :1]))


def write_label(path: Path, label: np.ndarray, case: Case) -> None:
    """(rows, columns, 1) uint8 -> an indexed PNG: the pixel values are the classes, the colours only show them."""
    image = Image.fromarray(np.ascontiguousarray(label[..., 0]))
    image.putpalette(_palette())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def example(folder: Path, suffix: str) -> Path:
    """A tiny file for tests."""
    path = folder / f"example{suffix}"
    with replacing(path) as temporary:
        Image.fromarray(np.arange(0, 240, 4, dtype=np.uint8).reshape(6, 10)).save(temporary)
    return path


def class_colour(value: int) -> tuple[int, int, int]:
    """Red, green and blue of a class, 0..255: the colours of PASCAL VOC, by the bits of its number; any two differ."""
    red = green = blue = 0
    for bit in range(8):
        shift = 7 - bit
        red |= (value >> (3 * bit) & 1) << shift
        green |= (value >> (3 * bit + 1) & 1) << shift
        blue |= (value >> (3 * bit + 2) & 1) << shift
    return red, green, blue


def _palette() -> list[int]:
    return [part for value in range(256) for part in class_colour(value)]


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of what is refused
            return Image.open(path)
    except FileNotFoundError:
        raise SamAdaptError(f"{path} does not exist; check the name and the folder") from None
    except UnidentifiedImageError:
        raise SamAdaptError(_why_unidentified(path)) from None
    except Image.DecompressionBombError as error:
        raise SamAdaptError(
            f"{path} is larger than what is read ({error}): its header is damaged, or it has to be cut into tiles or made smaller"
        ) from error
    except Exception as error:  # PIL raises whatever the bytes happen to mean
        raise SamAdaptError(f"{path} cannot be read ({error}); copy or export it again") from error


def _why_unidentified(path: Path) -> str:
    """The reason in words; PIL does not name the kind of TIFF that it cannot read."""
    if path.stat().st_size == 0:
        return f"{path} is empty; copy or export it again"
    if path.suffix.lower() in (".tif", ".tiff"):
        try:
            with tifffile.TiffFile(path) as file:
                page = file.pages[0]
                return f"{path} is a TIFF of {page.shape} {page.dtype} pixels; expected 8- or 16-bit grey or 8-bit RGB"
        except Exception:  # tifffile raises whatever the bytes happen to mean
            pass
    return f"{path} is not a picture that can be read (PNG, JPEG, TIFF, BMP, GIF or WebP); copy or export it again"


def _loaded(image: Image.Image, path: Path) -> Image.Image:
    try:
        image.load()
    except Exception as error:  # among them SyntaxError, for a broken PNG chunk
        raise SamAdaptError(f"{path} is damaged or cut off ({error}); copy or export it again") from error
    return image


def _refuse(image: Image.Image, path: Path) -> None:
    if image.mode not in _GREY and image.mode not in _COLOUR:
        raise _mode_error(image.mode, path)
    if image.mode == "P" and "transparency" in image.info:
        raise _mode_error("PA", path)
    try:
        frames = getattr(image, "n_frames", 1)  # only the formats that can hold several have it
        # Asked for its EXIF, a PNG without any would be decoded to its end; after `load` it stands in `info`.
        plain = image.format == "PNG" and "exif" not in image.info
        turned = 1 if plain else image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # as in `_loaded`
        raise SamAdaptError(f"{path} is damaged or cut off ({error}); copy or export it again") from error
    if frames > 1:
        raise SamAdaptError(f"{path} holds {frames} pictures; expected one: save each as a file of its own")
    if turned not in (0, 1):
        raise SamAdaptError(
            f"{path} is turned or mirrored by its EXIF tag (orientation {turned}), a mask made from it may be or not; "
            "expected upright pixels: rewrite it, e.g. `magick in.jpg -auto-orient out.jpg`, and check its mask"
        )
    if image.mode == "RGB" and _bits(image, path) > 8:
        raise SamAdaptError(f"{path} has 16-bit colour; expected 8-bit RGB or 8- or 16-bit grey: convert it")


def _bits(image: Image.Image, path: Path) -> int:
    """Bits of a colour channel in the file, because PIL silently reads 8 of 16."""
    if isinstance(image, PngImagePlugin.PngImageFile):
        with open(path, "rb") as file:
            return file.read(25)[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,)))
    return 8


def _mode_error(mode: str, path: Path) -> SamAdaptError:
    cure = _CURES.get(mode, "convert it to 8-bit RGB or to grey")
    what = {"PA": "a palette with transparency", "RGBA": "colour with alpha", "LA": "grey with alpha"}
    return SamAdaptError(f"{path} is {what.get(mode, mode)}; expected 8- or 16-bit grey or 8-bit RGB: {cure}")
