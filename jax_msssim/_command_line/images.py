"""Image files as arrays, with all the bits they have."""

import logging
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np
import PIL.Image
import PIL.ImageFile

from jax_msssim._checks import MAX_VAL_OF_INTEGERS

KINDS = "PNG, JPEG, JPEG 2000, TIFF, WebP, BMP, GIF, PBM, PGM or PPM"
SUFFIXES = tuple(
    f".{name}"
    for name in ("png", "jpg", "jpeg", "jp2", "j2k", "tif", "tiff", "webp", "bmp", "gif", "pbm", "pgm", "ppm")
)

_PILLOW_FORMATS = ("PNG", "JPEG", "JPEG2000", "WEBP", "BMP", "GIF", "PPM")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_BIT_DEPTH = 24  # offset in the file
_ORIENTATION = 0x0112  # in EXIF and in TIFF alike
_GDAL_NODATA = 42113
_LARGEST = 1e15  # of the domain of the metrics

PIL.Image.MAX_IMAGE_PIXELS = None  # the limit is for files of strangers
for name in ("tifffile", "imagecodecs"):  # what they cannot read, they raise as well
    logging.getLogger(name).setLevel(logging.CRITICAL)


class ImageError(Exception):
    """A file that cannot be compared, and why, in one line."""


class Image(NamedTuple):
    """An image as it is displayed."""

    pixels: np.ndarray
    """``[H, W, C]`` with 1 or 3 channels: uint8, uint16, or float32."""
    max_val: float
    """White."""
    opacity: np.ndarray | None
    """``[H, W, 1]`` from 0 to 1; None: all of it is opaque."""

    def over(self, ground: float) -> np.ndarray:
        """The pixels laid over a ground of one value, unrounded."""
        if self.opacity is None:
            return self.pixels
        return self.pixels * self.opacity + np.float32(ground) * (1 - self.opacity)


def read_image(path: Path, max_val: float | None = None) -> Image:
    """An image with its orientation applied.

    Args:
      path: the file.
      max_val: the value of white; by default 255 or 65535, as the file has 8 or 16 bits, and 1.0 for floating ones.

    Raises:
      ImageError: the file is missing, broken, or of a kind that is not supported.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_PNG_BIT_DEPTH + 1)
        if head.startswith(_TIFF_SIGNATURES):
            pixels, orientation = _read_tiff(path)
        else:
            pixels, orientation = _read_with_pillow(path, deep_png=head[1:4] == b"PNG" and head[-1] == 16)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except PIL.UnidentifiedImageError:
        raise ImageError(f"{path}: not a {KINDS} image") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ModuleNotFoundError:
        raise
    except Exception as error:  # of the decoders, each of which has its own
        raise ImageError(f"{path}: cannot be decoded: {' '.join(str(error).split())}") from None
    depth = MAX_VAL_OF_INTEGERS.get(str(pixels.dtype), 1.0)
    pixels, opacity = _upright(pixels, orientation), None
    if pixels.shape[-1] in (2, 4):
        pixels, alpha = pixels[..., :-1], pixels[..., -1:]
        opacity = None if (alpha == depth).all() else alpha / np.float32(depth)
    return Image(pixels, max_val or depth, opacity)


def luma(pixels: np.ndarray) -> np.ndarray:
    """BT.601 luma, ``0.299 R + 0.587 G + 0.114 B``, in float32; grey images have it already."""
    return pixels if pixels.shape[-1] == 1 else pixels @ np.array([[0.299], [0.587], [0.114]], np.float32)


def _read_with_pillow(path: Path, deep_png: bool) -> tuple[np.ndarray, int]:
    with PIL.Image.open(path, formats=_PILLOW_FORMATS) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # those are JPEGs of phones, with a preview behind the photograph
            raise ImageError(f"has {frames} frames, and one is compared")
        if image.format == "PPM":
            _check_netpbm(image)
        orientation = image.getexif().get(_ORIENTATION, 1)
        mode = {"1": "L", "P": "RGB", "PA": "RGB", "I": "L", "I;16": "L"}.get(image.mode, image.mode)
        if mode not in ("L", "LA", "RGB", "RGBA"):
            raise ImageError(f"holds {mode} colours: convert it to RGB")
        if image.has_transparency_data and not mode.endswith("A"):
            mode += "A"
        # Of colours Pillow would drop all bits but the upper 8.
        if deep_png:
            pixels = imagecodecs.png_decode(path.read_bytes())
        elif image.format == "JPEG2000":
            pixels = imagecodecs.jpeg2k_decode(path.read_bytes())
            if pixels.dtype not in (np.uint8, np.uint16):
                raise ImageError(f"holds {pixels.dtype} samples: convert it to 8 or 16 bits without a sign")
        elif image.mode == "I":
            pixels = np.asarray(image).astype(np.uint16)
        else:
            pixels = np.asarray(image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], -1), orientation


def _check_netpbm(image: PIL.ImageFile.ImageFile) -> None:
    """Pillow scales samples whose largest value is neither 255 nor, in grey, 65535."""
    codec, *_, arguments = image.tile[0]
    if codec != "raw" and image.mode != "1":
        assert isinstance(arguments, tuple)
        largest = arguments[1]
        if largest != (65535 if image.mode == "I" else 255):
            raise ImageError(
                f"says that white is {largest}: convert it to PNG or TIFF, it is read with 255, or 65535 if grey"
            )


def _read_tiff(path: Path) -> tuple[np.ndarray, int]:
    import tifffile  # here, since it takes a tenth of a second

    with tifffile.TiffFile(path) as file:
        # Overviews and thumbnails are marked as reduced.
        pages = [page.aspage() for page in file.pages]
        pages = [page for page in pages if not page.is_reduced] or pages
        if len(pages) != 1:
            raise ImageError(f"has {len(pages)} pages, and one is compared")
        page = pages[0]
        colours = tifffile.PHOTOMETRIC(page.photometric).name
        jpeg = page.compression == tifffile.COMPRESSION.JPEG  # decodes YCbCr to RGB
        if colours not in ("MINISBLACK", "RGB") and not (colours == "YCBCR" and jpeg):
            raise ImageError(f"holds {colours} colours: convert it to grey or RGB")
        integers = page.sampleformat == 1 and page.bitspersample in (8, 16)
        if not integers and page.dtype != np.float32:
            raise ImageError(f"has {page.bitspersample} bits a sample: convert it to 8 or 16, or to float32")
        if page.axes not in ("YX", "YXS", "SYX"):
            raise ImageError(f"has the axes {page.axes}, and not those of an image")
        # The JPEG decoder fills with grey what a truncated file lacks.
        last = max(start + count for start, count in zip(page.dataoffsets, page.databytecounts, strict=True))
        if last > file.filehandle.size:
            raise ImageError("is truncated")
        pixels = page.asarray()
        if page.axes == "SYX":
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        extra = [tifffile.EXTRASAMPLE(sample).name for sample in page.extrasamples]
        if extra == ["ASSOCALPHA"] and integers and (pixels[..., -1] == np.iinfo(pixels.dtype).max).all():
            pixels = pixels[..., :-1]
        elif extra and (extra != ["UNASSALPHA"] or not integers):
            raise ImageError(f"has extra channels ({', '.join(extra)}): convert it to grey or RGB without them")
        if not integers and not np.isfinite(pixels).all():
            raise ImageError("holds NaN or infinite pixels")
        if _GDAL_NODATA in page.tags and (missing := np.count_nonzero(pixels == page.nodata)):
            raise ImageError(
                f"has {missing} samples without data, {page.nodata:g} by its tag GDAL_NODATA: fill them or drop it"
            )
        if not integers and np.abs(pixels).max() > _LARGEST:
            raise ImageError(f"holds pixels beyond {_LARGEST:g}, which stand for missing ones: fill them")
        return pixels, page.tags.valueof(_ORIENTATION, 1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The image as viewers show it; the eight orientations are a transposition and two flips."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]
