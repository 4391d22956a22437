"""Reading photos: every pixel type, EXIF, and files that are no whole images."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from regionrt.runtime.errors import ImageError
from regionrt.runtime.image import MAX_PIXELS, read_image


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def gradient(height: int = 12, width: int = 20) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 3], axis=2).astype(np.uint8)


def png_header(width: int, height: int) -> bytes:
    """A PNG that only claims its size: a bomb that costs nothing to make."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back_exactly(form: str, tmp_path: Path) -> None:
    pixels = gradient()
    path = tmp_path / "photo"
    path.write_bytes(encoded(Image.fromarray(pixels), form, **({"lossless": True} if form == "WEBP" else {})))
    for source in (path, str(path), path.read_bytes()):
        found = read_image(source)
        assert found.dtype == np.uint8
        assert found.flags.writeable
        np.testing.assert_array_equal(found, pixels)


def test_grey_and_one_bit() -> None:
    grey = gradient()[..., 0]
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(grey), "PNG")), np.stack([grey] * 3, axis=2))
    bits = Image.fromarray(grey > 100)
    np.testing.assert_array_equal(read_image(encoded(bits, "PNG"))[..., 1], np.where(grey > 100, 255, 0))


def test_palette() -> None:
    palette = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    np.testing.assert_array_equal(read_image(encoded(palette, "PNG")), [[red, green], [blue, green]])


@pytest.mark.parametrize("transparent", [0, 2])
def test_transparent_palette_entry_becomes_white(transparent: int) -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    expected[transparent] = (255, 255, 255)
    np.testing.assert_array_equal(read_image(encoded(palette, "PNG", transparency=transparent))[0], expected)


def test_alpha_is_laid_over_white() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    expected = [[200, 100, 0], [255, 255, 255], [244, 224, 204]]  # 0.2 · colour + 0.8 · white
    np.testing.assert_allclose(read_image(encoded(Image.fromarray(rgba), "PNG"))[0], expected, atol=1)
    grey = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(read_image(encoded(grey, "PNG"))[0, :, 0], [7, 255])


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_the_upper_byte(form: str) -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    found = read_image(encoded(Image.fromarray(values), form))
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 0x12, 0xFF])
    assert (found == found[..., :1]).all()


def test_sixteen_bit_pgm() -> None:
    values = np.array([[0, 0x1234, 0xFFFF]], ">u2")
    np.testing.assert_array_equal(read_image(b"P5 3 1 65535\n" + values.tobytes())[0, :, 0], [0, 0x12, 0xFF])


def test_sixteen_bit_grey_equals_sixteen_bit_rgb() -> None:
    values = (np.arange(24) * 2731).astype(">u2").reshape(2, 12)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    def png(samples: np.ndarray, colour: int) -> bytes:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12, 2, 16, colour, 0, 0, 0))
        rows = b"".join(b"\0" + row.tobytes() for row in samples)
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    grey, rgb = png(values, 0), png(np.repeat(values[..., None], 3, axis=2), 2)
    np.testing.assert_array_equal(read_image(grey), read_image(rgb))


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="8 or 16 bits per channel, found 32"):
        read_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_cmyk_jpeg_has_its_colours() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(read_image(encoded(red, "JPEG", quality=95)), np.full((16, 16, 3), (255, 0, 0)), atol=12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    """The camera wrote the stored picture; turned as the EXIF table says, it must be the upright one."""
    upright = gradient(12, 20)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),  # stored turned to the left, to be shown turned to the right
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(data), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_spoil_the_photo() -> None:
    data = encoded(Image.fromarray(gradient()), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(data).shape == (12, 20, 3)


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(data)[0, 0], (255, 0, 0))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_file(form: str, share: float, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"cut\.img: .*(truncated or damaged|no known image format)") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_zero_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    with pytest.raises(ImageError, match=r"empty\.jpg: .*zero bytes"):
        read_image(path)
    with pytest.raises(ImageError, match="zero bytes"):
        read_image(b"")


def test_no_image(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a photo " * 100)
    with pytest.raises(ImageError, match="no known image format"):
        read_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="found a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="file name"):
        read_image("a\0b.jpg")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(30_000, 30_000), (12_000, 12_000), (MAX_PIXELS + 1, 1)])
def test_a_bomb_is_refused_before_it_is_decoded(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(ImageError, match="expected at most 100,000,000 pixels") as caught:
        read_image(png_header(*size))
    assert "resize" in str(caught.value)


def test_eps_is_refused_before_ghostscript_sees_it() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) show\n%%EOF\n"
    with pytest.raises(ImageError, match=r"expected a photo .* found EPS"):
        read_image(eps)
