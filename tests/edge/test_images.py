"""The decoder and the headers, held against Pillow."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from PIL import ImageOps

from acclimate.edge import headers, images
from acclimate.edge.headers import parse_header, read_header
from acclimate.edge.images import Reading, decode_image, read_image, turned, turned_back, turned_points
from acclimate.errors import AcclimateError

STORED = Reading(orientation="stored")


def smooth(height: int = 37, width: int = 53, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)


def encoded(picture: np.ndarray, kind: str, orientation: int | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    exif = Pillow.Exif()
    if orientation is not None:
        exif[274] = orientation
    if kind == "WEBP":
        options["lossless"] = True
    Pillow.fromarray(picture).save(file, kind, exif=exif, **options)
    return file.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks, (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in parts:
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_every_orientation_in_every_format_is_what_pillow_makes_of_it(kind: str, orientation: int | None) -> None:
    data = encoded(smooth(), kind, orientation)
    expected = np.asarray(ImageOps.exif_transpose(Pillow.open(io.BytesIO(data))).convert("RGB"))
    found = decode_image(data, "picture")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (6 if kind == "JPEG" else 0)
    stored = decode_image(data, "picture", STORED)
    np.testing.assert_array_equal(stored, decode_image(encoded(smooth(), kind), "picture"))
    header = parse_header(data, "picture")
    assert header.size() == found.shape[:2]
    assert header.size("stored") == stored.shape[:2] == (37, 53)


@pytest.mark.parametrize(("mode", "comment"), [("RGB", b""), ("L", b""), ("L", b"# a thermal camera\n")])
def test_a_netpbm_picture_is_what_pillow_makes_of_it(mode: str, comment: bytes) -> None:
    stored = io.BytesIO()
    picture = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)).convert(mode)
    picture.save(stored, "PPM")
    data = stored.getvalue()[:3] + comment + stored.getvalue()[3:]
    assert parse_header(data, "a.pgm").size() == (12, 16)
    assert np.array_equal(decode_image(data, "a.pgm"), np.asarray(picture.convert("RGB")))
    with pytest.raises(AcclimateError, match="not a readable image"):
        decode_image(data[:-9], "a.pgm")


def test_a_netpbm_picture_of_16_bits_has_its_first_byte_first() -> None:
    values = np.arange(28000, 28000 + 12 * 16, dtype=np.uint16).reshape(12, 16)
    data = b"P5\n16 12\n65535\n" + values.astype(">u2").tobytes()
    assert parse_header(data, "a.pgm").bits == 16
    grey = decode_image(data, "a.pgm")[..., 0].ravel().astype(int)
    assert (np.diff(grey) >= 0).all()
    assert grey[0] == 0
    assert grey[-1] == 255


def test_an_orientation_behind_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    data = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))[1].tobytes()
    exif = Pillow.Exif()
    exif[274] = 8
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    (tmp_path / "late.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert read_header(tmp_path / "late.png").orientation == 8
    assert read_image(tmp_path / "late.png").shape == (300, 200, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_turn_with_their_picture_and_back(orientation: int) -> None:
    picture = np.zeros((12, 20, 3), np.uint8)
    picture[3, 15] = 255
    rows, columns = np.nonzero(turned(picture, orientation)[:, :, 0])
    # The centre of a pixel, in coordinates in which a pixel covers [i, i + 1).
    centre = np.array([[15.5, 3.5]])
    moved = turned_points(centre, (12, 20), orientation)
    np.testing.assert_allclose(moved, [[columns[0] + 0.5, rows[0] + 0.5]])
    size = turned(picture, orientation).shape[:2]
    np.testing.assert_allclose(turned_points(moved, size, turned_back(orientation)), centre)


@pytest.mark.parametrize("extension", [".png", ".bmp", ".webp", ".tif", ".jpg"])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (301, 4)])
def test_sizes_come_from_the_header(tmp_path: Path, extension: str, size: tuple[int, int]) -> None:
    file = tmp_path / f"a{extension}"
    assert cv2.imwrite(str(file), np.zeros((*size, 3), np.uint8))
    assert read_header(file).size() == size


def test_a_long_profile_before_the_frame_is_read_past(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(smooth(), "JPEG", 6, icc_profile=os.urandom(200_000)))
    assert read_header(tmp_path / "a.jpg").size() == (53, 37)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_a_jpeg_without_its_end_is_whole_and_one_without_pixels_is_not(options: dict) -> None:
    data = encoded(smooth(240, 320), "JPEG", **options)
    whole = decode_image(data, "a")
    for sound in (data[:-2], data[:-1], data + b"\0" * 99, data[:-2] + b"\0" * 40 + data[-2:], data[:-2] + b"\0" * 9):
        np.testing.assert_array_equal(decode_image(sound, "a"), whole)
    for cut in (data[:-6], data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9"):
        with pytest.raises(AcclimateError, match=r"a: the JPEG is (truncated|damaged)"):
            decode_image(cut, "a")


@pytest.mark.parametrize("quality", [40, 95])
def test_a_jpeg_damaged_in_the_middle_is_not_taken_for_whole(quality: int) -> None:
    data = encoded(smooth(240, 320), "JPEG", quality=quality)
    middle = len(data) // 2
    noise = np.random.default_rng(1).integers(0, 256, 400, np.uint8).tobytes()
    for damaged in (
        data[:middle] + data[middle + 500 :],
        data[:middle] + noise + data[middle + 400 :],
        data[:middle] + bytes(512) + data[middle + 512 :],
        data[:middle] + b"\xff" * 200 + data[middle + 200 :],
    ):
        with pytest.raises(AcclimateError, match=r"damaged|truncated"):
            decode_image(damaged, "a")


def test_even_pictures_are_not_taken_for_damaged_ones() -> None:
    framed = np.pad(smooth(), ((200, 300), (100, 300), (0, 0)))
    for picture in (np.zeros((400, 600, 3), np.uint8), np.full((400, 600, 3), 255, np.uint8), framed):
        for options in ({}, {"optimize": True}, {"progressive": True}, {"quality": 10}):
            assert decode_image(encoded(picture, "JPEG", **options), "a").shape == picture.shape


def test_a_png_without_its_end_is_whole_and_a_damaged_one_is_not() -> None:
    picture = smooth(60, 80)
    data = encoded(picture, "PNG")
    for sound in (data[:-12], data[:-5], data[:-14], data + b"more"):
        np.testing.assert_array_equal(decode_image(sound, "a"), picture)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for bad in (bytes(flipped), data[: len(data) // 2], data[:40]):
        with pytest.raises(AcclimateError, match=r"^a: "):
            decode_image(bad, "a")


def test_what_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "tiny.png").write_bytes(png(100_000, 100_000, (b"IDAT", b"")))
    row = zlib.compress(bytes(1 + 3 * 30_000))
    (tmp_path / "large.png").write_bytes(png(30_000, 30_000, (b"IDAT", row)))
    for name in ("tiny.png", "large.png"):
        for read in (read_header, read_image):
            with pytest.raises(AcclimateError, match=r"pixels are more than the 134 million"):
                read(tmp_path / name)


def test_memory_stays_near_what_an_image_of_the_largest_size_needs(tmp_path: Path) -> None:
    """In a process that may take little memory, a large picture is a problem of that file."""
    side = 9000
    (tmp_path / "large.png").write_bytes(
        png(side, side, (b"IDAT", zlib.compress(bytes(side * (1 + 3 * side)), level=1)))
    )
    code = (
        "import resource, sys\n"
        "from acclimate.edge.images import read_image\n"
        "from acclimate.errors import AcclimateError\n"
        "limit = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize() + 150_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n    read_image(sys.argv[1])\n"
        "except AcclimateError as error:\n    print(error)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.png")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "large.png: " in done.stdout


@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "BMP"]), st.integers(0, 400))
def test_whatever_bytes_there_are_the_answer_is_a_picture_or_one_line(noise: bytes, kind: str, at: int) -> None:
    data = bytearray(encoded(smooth(16, 16), kind))
    data[at : at + len(noise)] = noise
    for bad in (bytes(data), noise, bytes(data[: at + 1])):
        try:
            answer = decode_image(bad, "a").dtype
        except AcclimateError as error:
            answer = str(error)
        assert answer == np.uint8 or (isinstance(answer, str) and "\n" not in answer)


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nothing")
    (tmp_path / "text.jpg").write_text("no image")
    for name, said in {
        "pipe.jpg": "not a regular file", "folder.jpg": "directory", "empty.jpg": "an empty file",
        "link.jpg": "No such file", "text.jpg": "not a readable image", "x" * 300 + ".jpg": "too long",
        "nul\0.jpg": "not a file name",
    }.items():  # fmt: skip
        for read in (read_header, read_image):
            with pytest.raises(AcclimateError, match=said):
                read(tmp_path / name)


# Pictures of more than 8 bits


def thermal(low: float, high: float, kind: type) -> np.ndarray:
    """A warm rectangle on a ground that slopes, with noise."""
    ground = np.linspace(low, (low + high) / 2, 160) + np.random.default_rng(0).normal(0, (high - low) / 50, (120, 160))
    ground[40:80, 60:100] = high
    return ground.astype(kind)


@pytest.mark.parametrize(
    ("values", "extension"),
    [
        (thermal(51241, 52181, np.uint16), ".png"),
        (thermal(51241, 52181, np.uint16), ".tif"),
        (thermal(-40, -5, np.float32), ".tif"),
        (thermal(0.001, 0.002, np.float32), ".tif"),
        (thermal(-300, 1000, np.float64), ".tif"),
    ],
)
def test_thermal_pictures_keep_what_is_in_them(tmp_path: Path, values: np.ndarray, extension: str) -> None:
    hot = values.copy()
    hot[5, 5] = np.iinfo(values.dtype).max if values.dtype == np.uint16 else 1e30
    hot[6, 6] = 0 if values.dtype == np.uint16 else np.nan
    for name, picture in {"plain": values, "hot": hot}.items():
        file = tmp_path / f"{name}{extension}"
        assert cv2.imwrite(str(file), picture)
        grey = read_image(file)[:, :, 0]
        assert len(np.unique(grey)) > 60
        assert grey[45:75, 65:95].mean() > 235
        assert grey[:, :20].mean() < 60


def test_a_fixed_range_is_the_same_for_every_picture(tmp_path: Path) -> None:
    for name, value in {"cold": 51000, "warm": 53000}.items():
        picture = np.full((20, 20), value, np.uint16)
        picture[0, 0] = 52000
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), picture)
    reading = Reading(intensity=(51000, 53000))
    cold, warm = (read_image(tmp_path / f"{name}.png", reading) for name in ("cold", "warm"))
    assert (cold[5, 5, 0], cold[0, 0, 0], warm[0, 0, 0], warm[5, 5, 0]) == (0, 128, 128, 255)
    with pytest.raises(ValueError, match="larger"):
        Reading(intensity=(2.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "mark", "extension"),
    [
        (np.uint16, 0, ".png"), (np.uint16, 65535, ".png"), (np.uint16, 0, ".tif"), (np.float32, -9999, ".tif"),
        (np.float32, 0, ".tif"), (np.float32, 3.4e38, ".tif"), (np.float64, np.nan, ".tif"),
        (np.float32, -np.inf, ".tif"), (np.int16, -32768, ".tif"),
    ],
)  # fmt: skip
def test_borders_without_a_value_take_no_grey_levels(tmp_path: Path, kind: type, mark: float, extension: str) -> None:
    values = thermal(20000, 20900, np.float64).astype(kind)
    assert cv2.imwrite(str(tmp_path / f"whole{extension}"), values)
    whole = read_image(tmp_path / f"whole{extension}")[:, 40:, 0]
    values[:, :40] = kind(mark)
    assert cv2.imwrite(str(tmp_path / f"cut{extension}"), values)
    cut = read_image(tmp_path / f"cut{extension}")[:, 40:, 0]
    # What is left is brighter by what the border held of the range, in as many grey levels.
    assert len(np.unique(cut)) > 0.9 * len(np.unique(whole))
    assert np.corrcoef(cut.ravel(), whole.ravel())[0, 1] > 0.99


def test_a_dark_sky_and_a_mask_keep_their_zero(tmp_path: Path) -> None:
    depth = np.linspace(500, 8000, 160 * 120).reshape(120, 160)
    depth[:, :40] = 0
    mask = np.zeros((120, 160))
    mask[40:80, 60:100] = 1000
    for name, values in {"depth": depth, "mask": mask}.items():
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), values.astype(np.uint16))
        picture = read_image(tmp_path / f"{name}.png")[:, :, 0]
        limits = np.percentile(values, (0.1, 99.9))
        expected = np.clip((values - limits[0]) / (limits[1] - limits[0]) * 255, 0, 255)
        assert np.abs(picture - expected).max() <= 1


def test_the_range_of_a_set_is_its_percentiles(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.normal(51000 + 40 * number, 90, (96, 128)).round().astype(np.uint16) for number in range(12)]
    paths = []
    for number, picture in enumerate(pictures):
        hot = picture.copy()
        hot[3, 3] = 65535
        paths.append(tmp_path / f"{number}.png")
        assert cv2.imwrite(str(paths[-1]), hot)
    np.testing.assert_allclose(images.intensity_of(paths), np.percentile(pictures, (0.1, 99.9)), atol=6)
    paths[0].write_bytes(paths[0].read_bytes()[:90])
    np.testing.assert_allclose(images.intensity_of(paths), np.percentile(pictures[1:], (0.1, 99.9)), atol=6)
    assert images.intensity_of(paths[:1]) is None
    assert images.intensity_of([]) is None


def test_a_header_tells_the_bits_of_a_sample(tmp_path: Path) -> None:
    for kind, name in ((np.uint8, "a.png"), (np.uint16, "b.png"), (np.uint16, "c.tif"), (np.float32, "d.tif")):
        assert cv2.imwrite(str(tmp_path / name), np.full((8, 8), 7, kind))
        assert headers.read_header(tmp_path / name).bits == 8 * np.dtype(kind).itemsize


def test_what_16_bits_hold_of_8_is_the_picture_of_8_bits_stretched(tmp_path: Path) -> None:
    picture = smooth(60, 80)
    alpha = np.full((60, 80, 1), 65535, np.uint16)
    for name, deep in {"rgb": picture.astype(np.uint16) * 257, "rgba": None}.items():
        deep = np.concatenate([picture.astype(np.uint16) * 257, alpha], axis=2) if deep is None else deep
        assert cv2.imwrite(str(tmp_path / f"{name}.png"), deep)
        found = read_image(tmp_path / f"{name}.png")
        assert np.abs(found[:, :, ::-1].astype(int) - picture).max() <= 12
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), read_image(tmp_path / "rgba.png"))


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_one_value_everywhere_is_no_error(tmp_path: Path, value: int) -> None:
    assert cv2.imwrite(str(tmp_path / "a.png"), np.full((8, 8), value, np.uint16))
    assert len(np.unique(read_image(tmp_path / "a.png"))) == 1


# The shared cases


def test_orientation_by_format(shared_cases: Path) -> None:
    files = sorted((shared_cases / "data" / "orientation-by-format").glob("a.*"))
    assert len(files) == 4
    pictures = [read_image(file) for file in files]
    assert {picture.shape for picture in pictures} == {(160, 120, 3)}
    assert max(np.abs(picture.astype(int) - pictures[0]).mean() for picture in pictures) < 10


@pytest.mark.parametrize("case", ["thermal-16bit-raw", "thermal-negative-float"])
def test_thermal_cases(shared_cases: Path, case: str) -> None:
    files = [file for file in sorted((shared_cases / "data" / case).iterdir()) if file.suffix in images.SUFFIXES]
    assert len(files) >= 2
    for file in files:
        assert len(np.unique(read_image(file))) > 20


def test_huge_and_truncated_cases(shared_cases: Path) -> None:
    with pytest.raises(AcclimateError, match="pixels"):
        read_image(shared_cases / "data" / "huge-png" / "huge.png")
    folder = shared_cases / "data" / "truncated-jpeg" / "images" / "train"
    assert read_image(folder / "g2.jpg").shape == (120, 160, 3)
    with pytest.raises(AcclimateError, match="truncated"):
        read_image(folder / "g1.jpg")
    assert headers.read_header(folder / "g1.jpg").size() == (120, 160)


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(103, 150, 88, 128), (101, 150, 86, 128), (120, 101, 96, 81), (120, 103, 96, 82), (1, 400, 1, 128)],
)
def test_the_sides_on_the_canvas_are_rounded(height: int, width: int, rows: int, columns: int) -> None:
    """On (96, 128), by hand: 103 x 128 / 150 = 87.9, 101 x 128 / 150 = 86.2, 101 x 0.8 = 80.8, 103 x 0.8 = 82.4."""
    canvas, _ = images.letterbox(np.full((height, width, 3), 255, np.uint8), (96, 128), fill=0)
    content = canvas[..., 0] > 0
    assert (int(content[:, 0].sum()), int(content[0].sum())) == (rows, columns)
