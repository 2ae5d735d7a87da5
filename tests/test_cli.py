"""The command line, as people use it: processes and files, and what they are told when something is wrong."""

import contextlib
import csv
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import oracle
import PIL.Image
import PIL.ImageOps
import pytest
import tifffile
from images import photograph

import jax_msssim
from jax_msssim import cli, conventions
from jax_msssim._command_line import compare as _compare
from jax_msssim._command_line import folders as _folders
from jax_msssim._command_line import images as _images

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "jax_msssim"]
SETTINGS = _compare.Settings(conventions.SKIMAGE_WANG, luma=False, fit_scales=False, max_val=None)  # without MS-SSIM
EXACT = 2e-7  # seven digits are printed, of numbers of order 1


def run(*arguments, **options):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, **options)


def crop(height, width, top=100, left=150, name="astronaut"):
    return photograph(name)[top : top + height, left : left + width]


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, **options)
    return path


def psnr(a, b, max_val=255):
    return 10 * np.log10(max_val**2 / np.mean((a.astype(float) - b) ** 2))


def lines(text):
    """The words of each line of a table."""
    return dict(line.split("\t", 1) for line in text.splitlines())


# --- Two images ------------------------------------------------------------------------------------------------


def test_two_images(tmp_path):
    # Constants: SSIM is luminance, MS-SSIM its power, and nothing else.
    a, b = (save(tmp_path / f"{value}.png", np.full((161, 161, 1), value, np.uint8)) for value in (100, 120))
    process = run(a, b)
    assert (process.returncode, process.stderr) == (0, "")
    values = {name: float(value) for name, value in lines(process.stdout).items()}
    c1 = (0.01 * 255) ** 2
    luminance = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    # A mean of 161 x 161 equal numbers in float32 may be off by 2 x 161 halves of an epsilon, 2e-5.
    assert values == {
        "psnr": pytest.approx(20 * np.log10(255 / 20), abs=1e-4),
        "ssim": pytest.approx(luminance, rel=EXACT),
        "ms_ssim": pytest.approx(luminance**0.1333, rel=EXACT),
        "ms_ssim_db": pytest.approx(-10 * np.log10(1 - luminance**0.1333), abs=1e-4),
        "dssim": pytest.approx((1 - luminance) / 2, rel=2e-5),
        "scales": 5,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", conventions.ALL)
def test_conventions(name, tmp_path, capsys):
    convention = conventions.ALL[name]
    a = save(tmp_path / "a.png", crop(181, 177))
    b = save(tmp_path / "b.jpg", crop(181, 177), quality=20)
    assert cli.main([str(a), str(b), "--convention", name.lower()]) == 0
    values = lines(capsys.readouterr().out)
    pixels = [_images.read_image(path).pixels for path in (a, b)]
    assert float(values["psnr"]) == pytest.approx(psnr(*pixels), rel=1e-6)
    assert float(values["ssim"]) == pytest.approx(float(jax_msssim.ssim(*pixels, **convention.ssim)), abs=EXACT)
    if convention.ms_ssim is None:
        assert list(values) == ["psnr", "ssim", "dssim"]
    else:
        expected = float(jax_msssim.ms_ssim(*pixels, **convention.ms_ssim))
        assert float(values["ms_ssim"]) == pytest.approx(expected, abs=EXACT)


@pytest.mark.slow
def test_sixteen_bits_and_luma(tmp_path, capsys):
    # 16-bit pixels that 8 bits would make equal to the reference; grey compared with RGB, by its luma.
    a = (crop(170, 165).astype(np.uint16) << 8) + 100
    b = a + np.uint16(100)
    paths = [tmp_path / name for name in ("a.png", "b.tif")]
    paths[0].write_bytes(imagecodecs.png_encode(a))
    tifffile.imwrite(paths[1], b, photometric="rgb")
    assert cli.main([*map(str, paths)]) == 0
    # Sums of 165 x 3 and 170 equal numbers in float32: 4e-5 of the mean, in decibels.
    assert float(lines(capsys.readouterr().out)["psnr"]) == pytest.approx(20 * np.log10(65535 / 100), abs=2e-4)

    luma = crop(170, 165) @ [0.299, 0.587, 0.114]
    a = save(tmp_path / "a8.png", crop(170, 165))
    b = save(tmp_path / "grey.png", np.round(luma).astype(np.uint8)[..., None])
    assert cli.main([str(a), str(b), "--luma"]) == 0
    assert float(lines(capsys.readouterr().out)["psnr"]) == pytest.approx(psnr(luma, np.round(luma)), rel=1e-4)


def test_max_val(tmp_path, capsys):
    a, b = crop(30, 40) // 8, crop(30, 40) // 16
    paths = save(tmp_path / "a.png", a), save(tmp_path / "b.png", b)
    assert cli.main([*map(str, paths), "--max-val", "31"]) == 0
    values = lines(capsys.readouterr().out)
    assert float(values["ssim"]) == pytest.approx(oracle.ssim(a, b, max_val=31), abs=1e-6)
    assert float(values["psnr"]) == pytest.approx(psnr(a, b) + 20 * np.log10(31 / 255), abs=1e-4)


def test_small_and_transparent_images(tmp_path, capsys):
    # Opaque alpha is dropped without a word.
    a = save(tmp_path / "a.png", np.concatenate([crop(30, 40), np.full((30, 40, 1), 255, np.uint8)], -1))
    alpha = np.full((30, 40, 1), 255, np.uint8)
    alpha[:, :7] = 0
    b = save(tmp_path / "b.png", np.concatenate([crop(30, 40) // 2, alpha], -1))
    assert cli.main([str(a), str(b)]) == 0
    output = capsys.readouterr()
    values = lines(output.out)
    assert (values["ms_ssim"], values["ms_ssim_db"], values["scales"]) == ("n/a", "n/a", "n/a")
    over_white = np.where(alpha, crop(30, 40) // 2, 255)
    assert float(values["ssim"]) == pytest.approx(oracle.ssim(crop(30, 40), over_white, max_val=255), abs=1e-6)
    transparent, small = output.err.splitlines()
    assert transparent == f"jax-msssim: {b}: transparent, compared over white"
    assert small.startswith(f"jax-msssim: {b}: less than 161 pixels a side: no MS-SSIM (--fit-scales")


@pytest.mark.slow
def test_fit_scales(tmp_path, capsys):
    a = save(tmp_path / "a.png", crop(30, 40))
    b = save(tmp_path / "b.png", crop(30, 40) // 2)
    assert cli.main([str(a), str(b), "--fit-scales"]) == 0
    output = capsys.readouterr()
    weights = jax_msssim.fit_power_factors((30, 40))
    expected = float(jax_msssim.ms_ssim(crop(30, 40), crop(30, 40) // 2, power_factors=weights))
    assert float(lines(output.out)["ms_ssim"]) == pytest.approx(expected, abs=EXACT)
    assert lines(output.out)["scales"] == "2"
    assert "MS-SSIM has fewer scales" in output.err


@pytest.mark.slow
def test_map(tmp_path):
    a = save(tmp_path / "a$b$.png", crop(64, 96))
    changed = crop(64, 96).copy()
    changed[20:30, 60:70] = 255
    b = save(tmp_path / "b.png", changed)
    process = run(a, b, "--map", tmp_path / "map.png")
    assert (process.returncode, len(process.stderr.splitlines())) == (0, 1)
    picture = np.asarray(PIL.Image.open(tmp_path / "map.png").convert("RGB")).astype(int)
    # Three panels side by side: bright on the right, where the change is, and dark about it.
    columns = np.flatnonzero((picture < 250).any(-1).mean(0) > 0.5)
    panels = np.split(columns, np.flatnonzero(np.diff(columns) > 5) + 1)
    left, right = panels[2][0], panels[2][-1]
    rows = np.flatnonzero((picture[:, left:right] < 250).any(-1).mean(1) > 0.5)
    error = picture[rows[0] : rows[-1], left:right].sum(-1)
    error[[0, 1, -2, -1]], error[:, [0, 1, -2, -1]] = 0, 0  # blended with the white around it
    # The map is 10 pixels smaller than the 64 x 96 of the image, and begins 5 pixels inside.
    row, column = np.unravel_index(error.argmax(), error.shape) / np.array(error.shape) * (54, 86) + 5
    assert 15 < row < 35
    assert 55 < column < 75
    assert np.median(error) < 30


@pytest.mark.slow
def shown(*arguments, cwd):
    """What a command that succeeds writes to a terminal."""
    leader, follower = pty.openpty()
    with subprocess.Popen([*COMMAND, *arguments], cwd=cwd, stdout=follower, stderr=follower) as process:
        os.close(follower)
        text = b""
        while True:
            try:
                text += os.read(leader, 4096)
            except OSError:  # the end of a terminal
                break
    os.close(leader)
    assert process.returncode == 0
    return text.decode()


def test_terminal(tmp_path):
    # A pseudo-terminal for both: the bar is drawn, and the table has borders.
    for name in ("x.png", "[bold]y.png"):
        save(tmp_path / "a" / name, crop(20, 20))
        save(tmp_path / "b" / name, crop(20, 20) // 2)
    text = shown("a", "b", "--convention", "dm_pix", cwd=tmp_path)
    for part in ("0/2", "2/2", "2 pairs, the worst by SSIM", "[bold]y.png", "│"):
        assert part in text
    text = shown("a/x.png", "b/x.png", "--convention", "tensorflow", "--fit-scales", cwd=tmp_path)
    for part in ("MS-SSIM, 1 scales", "D-SSIM", "│"):
        assert part in text


# --- Folders ---------------------------------------------------------------------------------------------------


def test_folders(tmp_path):
    # Six pairs that can be compared, six that cannot, and a file alone.
    for i in range(5):
        save(tmp_path / "a" / "sub" / f"{i}.png", crop(32, 32, top=32 * i))
        save(tmp_path / "b" / "sub" / f"{i}.JPG", crop(32, 32, top=32 * i), format="JPEG", quality=10 + 20 * i)
    for name in ("equal", "text", "truncated", "size", "grey", "tiny"):
        save(tmp_path / "a" / f"{name}.png", crop(32, 32))
        save(tmp_path / "b" / f"{name}.png", crop(32, 32))
    (tmp_path / "b/text.png").write_text("no picture")
    (tmp_path / "a/truncated.png").write_bytes((tmp_path / "a/truncated.png").read_bytes()[:1500])
    save(tmp_path / "b/size.png", crop(32, 31))
    save(tmp_path / "b/grey.png", crop(32, 32)[..., :1])
    save(tmp_path / "a/tiny.png", crop(10, 32)), save(tmp_path / "b/tiny.png", crop(10, 32))
    save(tmp_path / "a/unclear.png", crop(32, 32)), save(tmp_path / "b/unclear.jpg", crop(32, 32))
    save(tmp_path / "b/unclear.webp", crop(32, 32)), save(tmp_path / "b/alone.tif", crop(32, 32))
    (tmp_path / "values.csv").write_text("what was there before")

    process = run("a", "b", "--csv", "values.csv", "--json", "-", "--convention", "SKIMAGE_WANG", cwd=tmp_path)
    assert process.returncode == 2
    told = [line for line in process.stderr.splitlines() if line.startswith("jax-msssim: ")]
    for part in (
        "b/text.png: not a PNG, JPEG, TIFF or WebP image",
        "a/truncated.png: cannot be read: image file is truncated",
        "a/size.png and b/size.png: they are 32x32 RGB and 31x32 RGB",
        "a/grey.png and b/grey.png: they are 32x32 RGB and 32x32 grey; --luma",
        "a/tiny.png: 32x10 RGB is too small: SSIM needs 11 pixels a side",
        "unclear: it is not clear which belong together of unclear.png and unclear.jpg, unclear.webp",
        "b/alone.tif: without a counterpart",
        "6 of 12 pairs failed",
    ):
        assert [line for line in told if line.startswith(f"jax-msssim: {part}")], (part, told)
    assert len(told) == 8
    assert "Traceback" not in process.stderr

    rows = list(csv.DictReader((tmp_path / "values.csv").read_text().splitlines()))
    assert [row["test"] for row in rows] == ["b/equal.png"] + [f"b/sub/{i}.JPG" for i in range(5)]
    assert rows[0] == {"reference": "a/equal.png", "test": "b/equal.png", "psnr": "inf", "ssim": "1", "dssim": "0"}
    for row in rows[1:]:
        a, b = (np.asarray(PIL.Image.open(tmp_path / row[side])) for side in ("reference", "test"))
        assert float(row["psnr"]) == pytest.approx(psnr(a, b), rel=1e-6)
        assert float(row["ssim"]) == pytest.approx(oracle.ssim(a, b, max_val=255), abs=1e-6)

    values = json.loads(process.stdout)
    assert [pair["test"] for pair in values["pairs"]] == [row["test"] for row in rows]
    assert values["pairs"][0]["psnr"] is None  # infinite
    assert len(values["failed"]) == 6
    column = [float(row["ssim"]) for row in rows]
    assert values["mean"]["ssim"] == pytest.approx(np.mean(column), rel=EXACT)
    assert values["median"]["ssim"] == pytest.approx(np.median(column), rel=EXACT)
    assert values["worst"] == [rows[i]["reference"].removeprefix("a/") for i in np.argsort(column)[:5]]
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "values.csv"]  # and nothing left over


@pytest.mark.slow
def test_summary(tmp_path, capsys):
    # The mean leaves out what has no MS-SSIM, and says so.
    for name, side in (("x", 161), ("y", 161), ("z", 40)):
        save(tmp_path / "a" / f"{name}.png", crop(side, side, top=ord(name)))
        save(tmp_path / "b" / f"{name}.jpg", crop(side, side, top=ord(name)), quality=30)
    assert cli.main([str(tmp_path / "a"), str(tmp_path / "b"), "--csv", str(tmp_path / "c.csv")]) == 0
    output = capsys.readouterr()
    assert re.search("z.jpg: less than 161 pixels", output.err)
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert (rows[2]["ms_ssim"], rows[2]["scales"]) == ("", "")
    header, mean, median, *worst = [line.split("\t") for line in output.out.splitlines()]
    assert header == ["row", "pair", "psnr", "ssim", "ms_ssim", "ms_ssim_db", "dssim"]
    column = [float(row["ms_ssim"]) for row in rows[:2]]
    assert float(mean[4]) == pytest.approx(np.mean(column), rel=EXACT)
    assert float(median[4]) == pytest.approx(np.mean(column), rel=EXACT)
    assert sorted(row[1] for row in worst) == ["x.png", "y.png", "z.png"]


def test_one_program_for_each_size(tmp_path, monkeypatch):
    # Seven pairs of one size, in batches of three; five of other sizes, which share one. The values are their own.
    monkeypatch.setattr(_compare, "_BATCH_IMAGES", 3)
    programs = []
    monkeypatch.setattr(_compare, "_program", lambda *a, f=_compare._program: programs.append(f(*a)) or programs[0])
    sizes = [(24, 24)] * 7 + [(20 + i, 31 - 2 * i) for i in range(5)]
    pairs = []
    for i, (height, width) in enumerate(sizes):
        a = save(tmp_path / f"a{i}.png", crop(height, width, top=10 * i, name="camera"))
        b = save(tmp_path / f"b{i}.jpg", crop(height, width, top=10 * i, name="camera"), quality=20)
        pairs.append(_compare.Pair(str(i), a, b))
    results = {result.pair.name: result.values for result in _compare.compare(pairs, SETTINGS)}
    assert len(results) == len(pairs)
    for pair in pairs:
        a, b = (_images.read_image(path).pixels for path in pair[1:])
        assert results[pair.name].ssim == pytest.approx(oracle.ssim(a, b, max_val=255), abs=1e-6)
        assert results[pair.name].psnr == pytest.approx(psnr(a, b), rel=1e-6)
    assert programs[0]._cache_size() == 2


def test_memory_is_bounded(tmp_path, monkeypatch):
    # What waits for others of its size is computed once it takes too much memory, long before all files are read.
    monkeypatch.setattr(_compare, "_BATCH_IMAGES", 1000)
    monkeypatch.setattr(_compare, "_WAITING_BYTES", 3 * 2 * 24 * 24)
    path = save(tmp_path / "a.png", crop(24, 24, name="camera"))
    begun = []
    pairs = (begun.append(i) or _compare.Pair(str(i), path, path) for i in range(100))
    outcomes = _compare.compare(pairs, SETTINGS)
    assert next(outcomes).values.ssim == 1
    assert len(begun) <= 4 + _compare._READ_AHEAD + 1
    assert len(list(outcomes)) == 99


def test_pairing(tmp_path):
    for path in ("a/x.png", "a/s/y.v1.png", "a/s/z.png", "a/.hidden.png", "a/notes.txt", "a/.d/x.png", "a/q.png"):
        save_empty(tmp_path / path)
    for path in ("b/x.png", "b/x.jpg", "b/s/y.v1.webp", "b/z.png", "b/notes.txt", "b/.hidden.png", "b/q.PNG"):
        save_empty(tmp_path / path)
    pairs, ambiguous, alone = _folders.pair_folders(tmp_path / "a", tmp_path / "b")
    found = [(pair.name, str(pair.test.relative_to(tmp_path / "b"))) for pair in pairs]
    assert found == [("q.png", "q.PNG"), ("s/y.v1.png", "s/y.v1.webp"), ("x.png", "x.png")]
    assert ambiguous == []
    assert sorted(str(path.relative_to(tmp_path)) for path in alone) == ["a/s/z.png", "b/x.jpg", "b/z.png"]


def save_empty(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


# --- Files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats(suffix, channels, tmp_path):
    pixels = crop(20, 30)[..., :channels]
    if suffix == "webp":  # has no grey
        pixels = pixels.repeat(3 // channels, -1)
    path = save(tmp_path / f"x.{suffix}", pixels, **{"webp": {"lossless": True}}.get(suffix, {}))
    image = _images.read_image(path)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image[1:] == (255, False)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits(suffix, channels, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), np.uint16)
    path = tmp_path / f"x.{suffix}"
    plain = pixels if channels == 3 else pixels[..., 0]
    if suffix == "png":
        path.write_bytes(imagecodecs.png_encode(plain))
    else:
        tifffile.imwrite(path, plain, photometric="rgb" if channels == 3 else "minisblack", compression="zlib")
    image = _images.read_image(path)
    assert image.pixels.dtype == np.uint16
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.max_val == 65535


def test_floating_and_planar_tiff(tmp_path):
    pixels = crop(20, 30)
    tifffile.imwrite(tmp_path / "planar.tif", np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(_images.read_image(tmp_path / "planar.tif").pixels, pixels)
    tifffile.imwrite(tmp_path / "float.tif", pixels / np.float32(255), photometric="rgb")
    image = _images.read_image(tmp_path / "float.tif")
    np.testing.assert_array_equal(image.pixels, pixels / np.float32(255))
    assert image.max_val == 1
    assert _images.read_image(tmp_path / "float.tif", max_val=100).max_val == 100


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_alpha(kind, dtype, tmp_path):
    white = np.iinfo(dtype).max
    colours = (crop(20, 30).astype(np.uint32) * (white // 255)).astype(dtype)
    alpha = np.full((20, 30, 1), white, dtype)

    def written(alpha):
        path = tmp_path / f"x.{kind}"
        pixels = np.concatenate([colours, alpha], -1)
        if kind == "png":
            path.write_bytes(imagecodecs.png_encode(pixels))
        else:
            tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"])
        return _images.read_image(path)

    image = written(alpha)
    np.testing.assert_array_equal(image.pixels, colours)
    assert not image.transparent
    alpha[:10] = white // 5
    image = written(alpha)
    assert image.transparent
    np.testing.assert_array_equal(image.pixels[10:], colours[10:])
    # Rounding of float32, at most a few units in the last place of white.
    np.testing.assert_allclose(image.pixels[:10], colours[:10] * 0.2 + white * 0.8, rtol=1e-6)


def test_opaque_premultiplied_tiff(tmp_path):
    pixels = crop(20, 30)
    opaque = np.concatenate([pixels, np.full((20, 30, 1), 255, np.uint8)], -1)
    tifffile.imwrite(tmp_path / "a.tif", opaque, photometric="rgb", extrasamples=["assocalpha"])
    image = _images.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, pixels)
    assert not image.transparent


def test_palette_and_grey_alpha(tmp_path):
    image = PIL.Image.fromarray(crop(20, 30)).quantize(16)
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(_images.read_image(tmp_path / "p.png").pixels, np.asarray(image.convert("RGB")))
    image.save(tmp_path / "t.png", transparency=int(np.asarray(image)[0, 0]))
    read = _images.read_image(tmp_path / "t.png")
    assert read.transparent
    np.testing.assert_array_equal(read.pixels[0, 0], 255)
    grey = np.stack([crop(20, 30)[..., 0], np.full((20, 30), 255, np.uint8)], -1)
    save(tmp_path / "la.png", grey)
    np.testing.assert_array_equal(_images.read_image(tmp_path / "la.png").pixels, grey[..., :1])


DEEP = crop(20, 30)[..., 0].astype(np.uint16) * 200


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("suffix", "pixels"), [("png", crop(20, 30)), ("tif", crop(20, 30)), ("png", DEEP)])
def test_orientation(suffix, pixels, orientation, tmp_path):
    path = tmp_path / f"x.{suffix}"
    image = PIL.Image.fromarray(pixels)
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(PIL.ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(_images.read_image(path).pixels, expected.reshape(*expected.shape[:2], -1))


def broken_files(folder):
    """Files by what is said about them."""
    pixels = crop(60, 60)
    jpeg = save(folder / "whole.jpg", pixels).read_bytes()
    deep = imagecodecs.png_encode(pixels.astype(np.uint16))
    compressed = folder / "whole.tif"
    tifffile.imwrite(compressed, pixels, photometric="rgb", compression="jpeg")
    frames = [PIL.Image.fromarray(pixels), PIL.Image.fromarray(255 - pixels)]
    frames[0].save(folder / "frames.png", save_all=True, append_images=frames[1:])
    tifffile.imwrite(folder / "pages.tif", np.zeros((2, 20, 20), np.uint8))
    tifffile.imwrite(folder / "long.tif", np.zeros((20, 20), np.int32))
    tifffile.imwrite(folder / "nan.tif", np.full((20, 20), np.nan, np.float32))
    premultiplied = np.zeros((20, 20, 4), np.uint8)
    tifffile.imwrite(folder / "alpha.tif", premultiplied, photometric="rgb", extrasamples=["assocalpha"])
    alpha = premultiplied.astype(np.float32)
    tifffile.imwrite(folder / "float_alpha.tif", alpha, photometric="rgb", extrasamples=["unassalpha"])
    tifffile.imwrite(folder / "lab.tif", pixels, photometric="cielab")
    tifffile.imwrite(folder / "deep.tif", np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16))
    PIL.Image.new("CMYK", (20, 20)).save(folder / "cmyk.jpg")
    deflated = folder / "deflated.tif"
    tifffile.imwrite(deflated, pixels, photometric="rgb", compression="zlib")
    with tifffile.TiffFile(deflated) as file:
        start = file.pages.first.dataoffsets[0]
    whole = deflated.read_bytes()
    (folder / "garbled.tif").write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut.png").write_bytes(deep[: len(deep) // 2])
    (folder / "cut.tif").write_bytes(compressed.read_bytes()[:-200])
    (folder / "empty.png").touch()
    (folder / "text.webp").write_text("no picture at all, but some text instead")
    (folder / "folder.png").mkdir()
    return {
        "missing.png": "no such file",
        "folder.png": "cannot be read: Is a directory",
        "empty.png": "not a PNG",
        "text.webp": "not a PNG",
        "cut.jpg": "image file is truncated",
        "cut.png": "image file is truncated",
        "cut.tif": "is truncated",
        "frames.png": "has 2 frames",
        "pages.tif": "has 2 pages",
        "long.tif": "has 32 bits a sample",
        "nan.tif": "NaN",
        "alpha.tif": "ASSOCALPHA",
        "float_alpha.tif": "UNASSALPHA",
        "lab.tif": "holds CIELAB colours",
        "deep.tif": "has the axes ZYX",
        "cmyk.jpg": "holds CMYK colours",
        "garbled.tif": "cannot be decoded",
    }


def test_broken_files(tmp_path):
    for name, message in broken_files(tmp_path).items():
        with pytest.raises(_images.ImageError, match=re.escape(message)) as error:
            _images.read_image(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ")
        assert "\n" not in str(error.value)


# --- What people do wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png", "missing.png"], "missing.png: no such file"),
        (["a.png", "deep.png"], "their white is 255 and 65535"),
        (["a.png", "folder"], "one is a folder, the other is not"),
        (["folder", "empty"], "no image of one belongs to one of the other"),
        (["a.png", "a.png", "--csv", "nowhere/x.csv"], "nowhere/x.csv: cannot be written: there is no such folder"),
        (["a.png", "a.png", "--json", "folder"], "folder: cannot be written: it is not a file"),
        (["a.png", "a.png", "--csv", "/dev/null"], "/dev/null: cannot be written: it is not a file"),
        (["folder", "folder", "--map", "m.png"], "--map takes two files"),
        (["a.png", "a.png", "--csv", "-", "--json", "-"], "cannot both go to stdout"),
        (["a.png", "a.png", "--fit-scales", "--convention", "KORNIA"], "has no MS-SSIM"),
    ],
)
def test_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", crop(20, 20))
    save(tmp_path / "folder/a.png", crop(20, 20))
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(crop(20, 20).astype(np.uint16)))
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(rf"jax-msssim: .*{re.escape(message)}.*\n", output.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--convention", "PYTORCH"], "unknown name 'PYTORCH': use one of MATLAB"),
        (["--map", "map.jpg"], "must end in .png"),
        (["--max-val", "0"], "must be a number between"),
        (["--max-val", "white"], "must be a number between"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["a.png", "b.png", *arguments])
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


def test_disk_full(tmp_path, monkeypatch, capsys):
    # What was there stays, nothing is left beside it, and the table is shown.
    a = save(tmp_path / "a.png", crop(20, 20))
    (tmp_path / "x.csv").write_text("before")

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert cli.main([str(a), str(a), "--convention", "dm_pix", "--csv", str(tmp_path / "x.csv")]) == 2
    output = capsys.readouterr()
    assert output.err == f"jax-msssim: {tmp_path / 'x.csv'}: cannot be written: No space left on device\n"
    assert lines(output.out)["ssim"] == "1"
    assert (tmp_path / "x.csv").read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["a.png", "x.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["PIL", "rich", "tifffile", "imagecodecs", "matplotlib"])
def test_missing_package(package, tmp_path):
    a = save(tmp_path / "a.png", crop(20, 20))
    code = f"import sys; sys.modules[{package!r}] = None; from jax_msssim.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [a, a, "--map", tmp_path / "m.png", "--convention", "dm_pix"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr == f'jax-msssim: {package} is not installed: pip install "jax_msssim[cli]"\n'


@pytest.mark.slow
def test_full_device(tmp_path):
    a = save(tmp_path / "a.png", crop(20, 20))
    with open("/dev/full", "w") as full:
        finished = subprocess.run([*COMMAND, a, a, "--csv", "-"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert finished.returncode == 2
    assert finished.stderr.decode().endswith("jax-msssim: cannot write: No space left on device\n")


@pytest.mark.slow
def test_broken_pipe(tmp_path):
    # The reader leaves before anything is written.
    a = save(tmp_path / "a.png", crop(20, 20))
    with subprocess.Popen(
        [*COMMAND, a, a, "--convention", "dm_pix", "--csv", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        told = process.stderr.read().decode()
    assert process.returncode == 0
    assert "BrokenPipe" not in told


@pytest.mark.slow
def test_interrupt(tmp_path):
    for i in range(40):  # as many sizes take a minute to compile, as mirrored borders have no masks
        save(tmp_path / "a" / f"{i:02}.png", crop(400 + i, 400 + i, top=0, left=0))
    (tmp_path / "a/00.png").write_text("no picture, of which it tells while the others are at work")
    arguments = ["a", "a", "--csv", "x.csv", "--convention", "torchmetrics"]
    with subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert "a/00.png" in process.stderr.readline()
        # Once in a while, with every core busy, one is lost: one more would end it, as a person would find.
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
                break
        told = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in told
    assert os.listdir(tmp_path) == ["a"]


# --- Help ------------------------------------------------------------------------------------------------------


def test_help_is_the_documentation(capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    page = (ROOT / "docs" / "command_line.md").read_text()
    assert f"```text\n$ jax-msssim --help\n{text}```" in page
    assert all(name in page for name in conventions.ALL)


def test_version(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"jax_msssim {jax_msssim.__version__}\n"
