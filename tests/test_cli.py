"""The command line, as people use it: processes and files, and what they are told when something is wrong."""

import contextlib
import csv
import importlib.util
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import formulas
import imagecodecs
import numpy as np
import oracle
import PIL.Image
import PIL.ImageOps
import pytest
import tifffile
from images import photograph
from test_transformations import compilations

import jax_msssim
from jax_msssim import cli, conventions

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "jax_msssim"]
WHITE = np.uint8(255)
EXACT = 2e-7  # seven digits are printed, of numbers of order 1


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The user's cache directory."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: the exit status, what it prints, and what it tells."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            # XLA's cache would be on for all tests after this one.
            status = cli.main([*map(str, arguments), "--no-cache"])
        except SystemExit as leaving:  # of argparse
            status = leaving.code
        output = capsys.readouterr()
        return status, output.out, [line for line in output.err.splitlines() if line.startswith("jax-msssim: ")]

    return run


def crop(height, width, top=100, left=150, name="astronaut"):
    return photograph(name)[top : top + height, left : left + width]


def save(path, pixels, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path, **options)
    return path


def save_deep(path, pixels):
    """A PNG of as many bits as the pixels have, whatever the name says."""
    plain = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Path(path).write_bytes(imagecodecs.png_encode(np.ascontiguousarray(plain)))


def interlaced(path, pixels):
    """A PNG of 16 bits in the seven passes of Adam7, which no library at hand writes."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[top::down, left::right].astype(">u2") for top, left, down, right in passes]
    data = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    height, width, _ = pixels.shape
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 1)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    body = [struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks]
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


def read(path):
    pixels = np.asarray(PIL.Image.open(path))
    return pixels.reshape(*pixels.shape[:2], -1)


def psnr(a, b, max_val=255):
    return 10 * np.log10(max_val**2 / np.mean((a.astype(float) - b) ** 2))


def values_of(text):
    """The words of each line of a table."""
    return dict(line.split("\t", 1) for line in text.splitlines())


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


# --- Two images ------------------------------------------------------------------------------------------------


def test_two_images(command):
    # Constants: SSIM is luminance, MS-SSIM its power, and nothing else.
    for value in (100, 120):
        save(f"{value}.png", np.full((161, 161, 1), value, np.uint8))
    status, out, told = command("100.png", "120.png")
    assert (status, told) == (0, [])
    values = {name: float(value) for name, value in values_of(out).items()}
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
def test_conventions(name, command):
    convention = conventions.ALL[name]
    a, b = save("a.png", crop(181, 177)), save("b.jpg", crop(181, 177), quality=20)
    status, out, _ = command(a, b, "--convention", name.lower().replace("_", "-"))
    assert status == 0
    values, pixels = values_of(out), (read(a), read(b))
    assert float(values["psnr"]) == pytest.approx(psnr(*pixels), rel=1e-6)
    assert float(values["ssim"]) == pytest.approx(float(jax_msssim.ssim(*pixels, **convention.ssim)), abs=EXACT)
    if not convention.ms_ssim:
        assert list(values) == ["psnr", "ssim", "dssim"]
    else:
        expected = float(jax_msssim.ms_ssim(*pixels, **convention.ms_ssim))
        assert float(values["ms_ssim"]) == pytest.approx(expected, abs=EXACT)


@pytest.mark.slow
def test_luma_of_colours_and_grey(command):
    luma = crop(170, 165) @ [0.299, 0.587, 0.114]
    a, b = save("a.png", crop(170, 165)), save("grey.png", np.round(luma).astype(np.uint8)[..., None])
    expected = pytest.approx(psnr(luma, np.round(luma)), rel=1e-4)
    assert float(values_of(command(a, b, "--luma")[1])["psnr"]) == expected


def test_max_val(command):
    a, b = crop(30, 40) // 8, crop(30, 40) // 16
    status, out, _ = command(save("a.png", a), save("b.png", b), "--max-val", 31)
    values = values_of(out)
    assert status == 0
    assert float(values["ssim"]) == pytest.approx(oracle.ssim(a, b, max_val=31), abs=1e-6)
    assert float(values["psnr"]) == pytest.approx(psnr(a, b, 31), abs=1e-4)


def test_small_and_transparent_images(command):
    # Opaque alpha is dropped without a word.
    alpha = np.full((30, 40, 1), 255, np.uint8)
    save("a.png", np.concatenate([crop(30, 40), alpha], -1))
    alpha[:, :7] = 0
    save("b.png", np.concatenate([crop(30, 40) // 2, alpha], -1))
    status, out, (transparent, small) = command("a.png", "b.png")
    values = values_of(out)
    assert (status, values["ms_ssim"], values["ms_ssim_db"], values["scales"]) == (0, "n/a", "n/a", "n/a")
    over_white = np.where(alpha, crop(30, 40) // 2, 255)
    assert float(values["ssim"]) == pytest.approx(oracle.ssim(crop(30, 40), over_white, max_val=255), abs=1e-6)
    assert transparent == "jax-msssim: b.png: transparent, compared over white"
    assert (values["transparent"], values["ground"]) == ("test", "white")
    assert small.startswith("jax-msssim: b.png: less than 161 pixels a side: no MS-SSIM (--fit-scales")


def test_white_on_a_transparent_ground(command):
    # A logo of white letters that is lost, or moved, differs over any ground but white.
    logo = np.full((40, 40, 4), 255, np.uint8)
    logo[..., 3] = 0
    moved, flat = logo.copy(), np.full((40, 40, 3), 255, np.uint8)
    logo[10:30, 10:30, 3] = moved[5:20, 5:35, 3] = 255
    for name, pixels in {"moved": moved, "lost": np.zeros_like(logo), "same": logo, "flat": flat}.items():
        save(f"a/{name}.png", logo)
        save(f"b/{name}.png", pixels)
    arguments = "a", "b", "--convention", "dm_pix", "--csv", "values.csv", "--json"
    status, out, told = command(*arguments, "-")
    assert (status, len(told)) == (0, 2)
    pairs = {pair["test"][2:-4]: pair for pair in json.loads(out)["pairs"]}
    for name in ("moved", "lost"):
        shown = [x[..., :3] * (x[..., 3:] / 255) for x in (logo, read(f"b/{name}.png"))]
        assert pairs[name]["ssim"] == pytest.approx(oracle.ssim(*shown, max_val=255), abs=1e-6)
    found = {name: (pair["ssim"], pair["transparent"], pair["ground"]) for name, pair in pairs.items()}
    assert found["same"] == (1, "both", "white")
    assert found["flat"] == (1, "reference", "white")
    assert {found[name][1:] for name in ("moved", "lost")} == {("both", "black")}
    for row in rows_of(Path("values.csv").read_text()):
        assert (row["transparent"], row["ground"]) == found[row["test"][2:-4]][1:]


@pytest.mark.slow
def test_fit_scales(command):
    a, b = crop(30, 40), crop(30, 40) // 2
    status, out, told = command(save("a.png", a), save("b.png", b), "--fit-scales")
    expected = float(jax_msssim.ms_ssim(a, b, power_factors=jax_msssim.fit_power_factors((30, 40))))
    assert float(values_of(out)["ms_ssim"]) == pytest.approx(expected, abs=EXACT)
    assert (status, values_of(out)["scales"]) == (0, "2")
    assert "MS-SSIM has fewer scales" in told[0]


@pytest.mark.slow
def test_map(command):
    a, changed = crop(64, 96), crop(64, 96).copy()
    changed[20:30, 60:70] = 255
    status, _, told = command(save("a$b$.png", a), save("b.png", changed), "--map", "map.png")
    assert (status, len(told)) == (0, 1)
    picture = np.asarray(PIL.Image.open("map.png").convert("RGB")).astype(int)
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
def test_titles_of_a_map(command, monkeypatch):
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, text, **_: titles.append(text))
    for path in ("a/x.png", "b/x.png", "a/sub/x.png", "b/sub/x.png"):
        save(path, crop(24, 24))
    for pair, expected in {
        ("a/x.png", "b/x.png"): ["a/x.png", "b/x.png"],
        ("a/sub/x.png", "b/sub/x.png"): ["a/sub/x.png", "b/sub/x.png"],
        ("a/x.png", "b/sub/x.png"): ["a/x.png", "sub/x.png"],
        ("a/x.png", "a/x.png"): ["x.png", "x.png"],
    }.items():
        command(*pair, "--map", "map.png", "--convention", "dm_pix")
        assert titles[:2] == expected
        titles.clear()


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
    return re.sub(r"\x1b\[[\d;]*m", "", text.decode())


def test_terminal(tmp_path):
    # A process, with a pseudo-terminal for both: the bar is drawn, and the table has borders.
    for name in ("x.png", "[bold]y.png"):
        save(tmp_path / "a" / name, crop(20, 20))
        save(tmp_path / "b" / name, crop(20, 20) // 2)
    text = shown("a", "b", "--convention", "dm_pix", cwd=tmp_path)
    for part in ("0/2", "2/2", "2 pairs, the worst by SSIM", "[bold]y.png", "│"):
        assert part in text
    save(tmp_path / "b/x.png", np.full((20, 20, 4), 100, np.uint8))
    text = shown("a/x.png", "b/x.png", "--convention", "tensorflow", "--fit-scales", cwd=tmp_path)
    for part in ("MS-SSIM, 1 scales", "D-SSIM", "│", "test laid over white"):
        assert part in text
    text = shown("a", "b", "--convention", "dm_pix", cwd=tmp_path)
    assert "1 with transparent images, laid over white or black" in " ".join(text.split())


# --- Folders ---------------------------------------------------------------------------------------------------


def test_folders(command):
    # Six pairs that can be compared, six that cannot, and a file alone.
    for i in range(5):
        save(f"a/sub/{i}.v1.png", crop(32, 32, top=32 * i))
        save(f"b/sub/{i}.v1.JPG", crop(32, 32, top=32 * i), format="JPEG", quality=10 + 20 * i)
    for name in ("equal", "text", "truncated", "size", "grey", "tiny"):
        save(f"a/{name}.png", crop(32, 32))
        save(f"b/{name}.png", crop(32, 32))
    Path("b/text.png").write_text("no picture")
    Path("a/truncated.png").write_bytes(Path("a/truncated.png").read_bytes()[:1500])
    save("b/size.png", crop(32, 31))
    save("b/grey.png", crop(32, 32)[..., :1])
    save("a/tiny.png", crop(10, 32)), save("b/tiny.png", crop(10, 32))
    for path in ("a/unclear.png", "b/unclear.jpg", "b/unclear.webp", "b/equal.tif"):  # equal.png has its like
        save(path, crop(32, 32))
    for path in ("a/notes.txt", "b/notes.txt", "a/.hidden.png", "b/.hidden.png", "a/.d/x.png", "b/.d/x.png"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()  # passed over
    Path("values.csv").write_text("what was there before")

    status, out, told = command("a", "b", "--csv", "values.csv", "--json", "-", "--convention", "SKIMAGE_WANG")
    assert status == 2
    for part in (
        "b/text.png: not a PNG, JPEG, JPEG 2000, TIFF",
        "a/truncated.png: cannot be read: image file is truncated",
        "a/size.png and b/size.png: they are 32x32 RGB and 31x32 RGB",
        "a/grey.png and b/grey.png: they are 32x32 RGB and 32x32 grey; --luma",
        "a/tiny.png: 32x10 RGB is too small: SSIM needs 11 pixels a side",
        "unclear: it is not clear which belong together of unclear.png and unclear.jpg, unclear.webp",
        "b/equal.tif: without a counterpart",
        "6 of 12 pairs failed",
    ):
        assert [line for line in told if line.startswith(f"jax-msssim: {part}")], (part, told)
    assert len(told) == 8

    rows = rows_of(Path("values.csv").read_text())
    assert [row["test"] for row in rows] == ["b/equal.png"] + [f"b/sub/{i}.v1.JPG" for i in range(5)]
    opaque = {"transparent": "none", "ground": "none"}
    equal = {"reference": "a/equal.png", "test": "b/equal.png", "psnr": "inf", "ssim": "1", "dssim": "0"}
    assert rows[0] == equal | opaque
    for row in rows[1:]:
        a, b = read(row["reference"]), read(row["test"])
        assert float(row["psnr"]) == pytest.approx(psnr(a, b), rel=1e-6)
        assert float(row["ssim"]) == pytest.approx(oracle.ssim(a, b, max_val=255), abs=1e-6)

    values = json.loads(out)
    assert [pair["test"] for pair in values["pairs"]] == [row["test"] for row in rows]
    assert values["pairs"][0]["psnr"] is None  # infinite
    assert len(values["failed"]) == 6
    column = [float(row["ssim"]) for row in rows]
    assert values["mean"]["ssim"] == pytest.approx(np.mean(column), rel=EXACT)
    assert values["median"]["ssim"] == pytest.approx(np.median(column), rel=EXACT)
    assert values["worst"] == [rows[i]["reference"].removeprefix("a/") for i in np.argsort(column)[:5]]
    assert sorted(os.listdir()) == ["a", "b", "values.csv"]  # and nothing left over


def test_linked_sub_folders(command, monkeypatch):
    # Data sets kept once are linked to; a link that leads up, or round, has no end; what cannot be read is told.
    for folder in "ab":
        for path in ("near/1.png", f"../store_{folder}/2.png"):
            save(f"{folder}/{path}", crop(24, 24))
        for name, target in {"far": f"../store_{folder}", "twice": "near", "up": "..", "locked/self": "."}.items():
            Path(folder, name).parent.mkdir(exist_ok=True)
            Path(folder, name).symlink_to(target)
        Path(f"store_{folder}/back").symlink_to(f"../{folder}")
    scandir = os.scandir

    def guarded(path):  # root may read everything
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    status, out, told = command("a", "b", "--json", "-", "--convention", "dm_pix")
    assert [pair["test"] for pair in json.loads(out)["pairs"]] == ["b/far/2.png", "b/near/1.png", "b/twice/1.png"]
    expected = [f"jax-msssim: {folder}/locked: cannot be read: Permission denied" for folder in "ab"]
    assert (status, told) == (2, [*expected, "jax-msssim: 2 of 5 pairs failed"])


@pytest.mark.slow
def test_summary(command):
    # The mean leaves out what has no MS-SSIM, and says so.
    for name, side in (("x", 161), ("y", 161), ("z", 40)):
        save(f"a/{name}.png", crop(side, side, top=ord(name)))
        save(f"b/{name}.jpg", crop(side, side, top=ord(name)), quality=30)
    status, out, told = command("a", "b", "--csv", "c.csv", "--json", "c.json")
    assert status == 0
    assert "z.jpg: less than 161 pixels" in told[0]
    rows = rows_of(Path("c.csv").read_text())
    assert (rows[0]["scales"], rows[2]["ms_ssim"], rows[2]["scales"]) == ("5", "", "")
    scales = [pair["scales"] for pair in json.loads(Path("c.json").read_text())["pairs"]]
    assert repr(scales) == "[5, 5, None]"  # no 5.0
    header, mean, median, *worst = [line.split("\t") for line in out.splitlines()]
    assert header == ["row", "pair", "psnr", "ssim", "ms_ssim", "ms_ssim_db", "dssim"]
    column = [float(row["ms_ssim"]) for row in rows[:2]]
    assert float(mean[4]) == pytest.approx(np.mean(column), rel=EXACT)
    assert float(median[4]) == pytest.approx(np.mean(column), rel=EXACT)
    assert sorted(row[1] for row in worst) == ["x.png", "y.png", "z.png"]


def test_one_program_for_many_sizes(command):
    # Eighteen pairs of one size, more than are computed at once, and five of other sizes.
    sizes = [(24, 24)] * 18 + [(20 + i, 31 - 2 * i) for i in range(5)]
    for i, (height, width) in enumerate(sizes):
        save(f"a/{i}.png", crop(height, width, top=10 * i, name="camera"))
        save(f"b/{i}.jpg", crop(height, width, top=10 * i, name="camera"), quality=20)
    outputs = []
    arguments = "a", "b", "--csv", "-", "--convention", "SKIMAGE_WANG"
    assert compilations(lambda: outputs.append(command(*arguments)[1])) == 1
    rows = rows_of(outputs[0])
    assert len(rows) == len(sizes)
    for row in rows:  # the values are their own
        a, b = read(row["reference"]), read(row["test"])
        assert float(row["ssim"]) == pytest.approx(oracle.ssim(a, b, max_val=255), abs=1e-6)
        assert float(row["psnr"]) == pytest.approx(psnr(a, b), rel=1e-6)


@pytest.mark.skipif(sys.platform != "linux", reason="the cache directory is named by another variable")
def test_kept_programs(cache, tmp_path):
    # What is damaged is made anew, and nothing is told of it.
    a = save(tmp_path / "a.png", crop(60, 60))
    b = save(tmp_path / "b.jpg", crop(60, 60), quality=30)

    def run(*options):
        arguments = [a, b, "--convention", "dm_pix", "--csv", "-", *options]
        process = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=True)
        return process.stdout, process.stderr

    expected = run("--no-cache")
    assert not [*cache.rglob("*")]
    assert run() == expected
    (program,) = cache.rglob("*.program")
    before = program.stat()
    assert run() == expected
    assert program.stat().st_mtime_ns == before.st_mtime_ns
    program.write_bytes(b"damaged")
    assert run() == expected
    assert program.read_bytes() != b"damaged"


# --- DISTS -----------------------------------------------------------------------------------------------------

NO_MS_SSIM = "--convention", "SKIMAGE_WANG"  # compiles sooner


@pytest.mark.slow
def test_dists(command):
    # One lies, one stands, which a network minds, and one is grey; by weights that mean nothing.
    deep = pytest.importorskip("jax_msssim.deep")
    arrays = {name: np.ascontiguousarray(x) for name, x in formulas.torch_arrays().items()}
    np.savez("weights.npz", **arrays)
    for name, pixels in {"lies": crop(20, 31), "stands": crop(31, 20), "grey": crop(24, 24, name="camera")}.items():
        save(f"a/{name}.png", pixels)
        save(f"b/{name}.png", pixels // 2)
    _, out, told = command("a", "b", *NO_MS_SSIM, "--dists", "weights.npz", "--csv", "values.csv", "--json", "-")
    assert told == []
    rows, values = rows_of(Path("values.csv").read_text()), json.loads(out)
    network = deep.VGG16.from_torch(arrays)
    for row, value in zip(rows, values["pairs"], strict=True):
        pixels = [np.broadcast_to(x, (*x.shape[:2], 3)) for x in (read(row["reference"]), read(row["test"]))]
        expected = pytest.approx(float(deep.dists_loss(*pixels, network=network)), rel=1e-5)
        assert (float(row["dists"]), value["dists"]) == (expected, expected)
    assert values["mean"]["dists"] == pytest.approx(np.mean([value["dists"] for value in values["pairs"]]), rel=1e-6)
    if importlib.util.find_spec("safetensors"):
        importlib.import_module("safetensors.numpy").save_file(arrays, "weights.safetensors")
        _, out, _ = command("a/grey.png", "b/grey.png", *NO_MS_SSIM, "--dists", "weights.safetensors")
        (expected,) = (float(row["dists"]) for row in rows if row["test"] == "b/grey.png")
        assert float(values_of(out)["dists"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("missing", "weights", "told"),
    [
        (None, "missing.npz", "missing.npz: cannot be read: No such file or directory"),
        (None, "text.npz", "text.npz: "),
        (None, "other.npz", "other.npz: weights must hold features.0.weight"),
        ("flax", "other.npz", 'flax is not installed: pip install "jax_msssim[cli,dists]"'),
        ("safetensors", "text.safetensors", 'safetensors is not installed: pip install "jax_msssim[cli,dists]"'),
    ],
)
def test_dists_without_weights(missing, weights, told, command, monkeypatch):
    pytest.importorskip("flax")
    for name in ("text.npz", "text.safetensors"):
        Path(name).write_text("no weights")
    np.savez("other.npz", x=np.ones(1))
    a = save("a.png", crop(20, 20))
    if missing:
        for module in (missing, f"{missing}.numpy"):
            monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, "jax_msssim._command_line.network", raising=False)
        monkeypatch.delattr("jax_msssim._command_line.network", raising=False)
    status, out, (line,) = command(a, a, "--dists", weights)
    assert (status, out) == (2, "")
    assert line.startswith(f"jax-msssim: {told}")


# --- Files -----------------------------------------------------------------------------------------------------


def test_formats(command):
    """Whatever a file is, its pixels are those of a plain PNG, which lies in the other folder under the same name."""
    colour = crop(24, 24) // 5 * 5
    deep = colour.astype(np.uint16) * 257
    noise = np.random.default_rng(0).integers(0, 65536, (24, 24, 3), np.uint16)
    palette = PIL.Image.fromarray(colour).quantize(16)
    of_palette, index = np.asarray(palette.convert("RGB")), np.asarray(palette)
    Path("a").mkdir(), Path("b").mkdir()

    def tiff(path, pixels, photometric="rgb", **options):
        tifffile.imwrite(path, pixels, photometric=photometric, **options)

    def plain_pgm(path, pixels):
        Path(path).write_text(f"P2 24 24 255\n{' '.join(map(str, pixels.ravel()))}\n")

    def deep_pgm(path, pixels):
        Path(path).write_bytes(b"P5\n# 16 bits\n24 24 65535\n" + pixels.astype(">u2").tobytes())

    def deep_jpeg2000(path, pixels):
        Path(path).write_bytes(imagecodecs.jpeg2k_encode(np.squeeze(pixels), level=0, codecformat="j2k"))

    def with_overview(path, pixels):
        with tifffile.TiffWriter(path) as file:
            file.write(pixels, photometric="rgb")
            file.write(pixels[::2, ::2].copy(), photometric="rgb", subfiletype=1)

    def with_opaque(pixels):
        return np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], -1)

    def translucent(pixels):
        """The upper half lets four fifths of the white through."""
        alpha = np.full((24, 24, 1), np.iinfo(pixels.dtype).max)
        alpha[:12] //= 5
        return np.concatenate([pixels, alpha.astype(pixels.dtype)], -1)

    def over_white(pixels):
        white = np.iinfo(pixels.dtype).max
        return np.concatenate([pixels[:12] // 5 + white // 5 * 4, pixels[12:]])

    files = [
        *((f"{x.shape[-1]}.{suffix}", save, x, {}) for x in (colour, colour[..., :1]) for suffix in ("png", "tiff")),
        ("lossless.webp", save, colour, {"lossless": True}),
        *((f"deep{x.shape[-1]}.png", save_deep, x, {}) for x in (noise, noise[..., :1])),
        ("deep.tif", tiff, noise, {"compression": "zlib"}),
        ("deep_grey.tif", lambda path, x: tiff(path, x[..., 0], "minisblack"), noise[..., :1], {}),
        ("planar.tif", lambda path, x: tiff(path, np.moveaxis(x, -1, 0), planarconfig="separate"), colour, {}),
        ("palette.png", lambda path, _: palette.save(path), of_palette, {}),
        ("grey_alpha.png", lambda path, x: save(path, with_opaque(x)), colour[..., :1], {}),
        ("premultiplied.tif", lambda path, x: tiff(path, with_opaque(x), extrasamples=["assocalpha"]), colour, {}),
        *((f"{x.shape[-1]}.{suffix}", save, x, {}) for x in (colour, colour[..., :1]) for suffix in ("bmp", "jp2")),
        ("colour.ppm", save, colour, {}),
        ("grey.pgm", save, colour[..., :1], {}),
        ("plain.pgm", plain_pgm, colour[..., :1], {}),
        (
            "plain.pbm",
            lambda path, x: PIL.Image.fromarray(x[..., 0] > 0).save(path),
            (colour[..., :1] > 99) * WHITE,
            {},
        ),
        ("deep.pgm", deep_pgm, noise[..., :1], {}),
        ("palette.gif", lambda path, _: palette.save(path), of_palette, {}),
        *((f"deep{x.shape[-1]}.j2k", deep_jpeg2000, x, {}) for x in (noise, noise[..., :1])),
        ("overview.tif", with_overview, colour, {}),
        ("without_missing.tif", lambda path, x: tiff(path, x, extratags=[(42113, 2, 0, "1", True)]), colour, {}),
        ("interlaced.png", interlaced, noise, {}),
    ]
    for name, write, pixels, options in files:
        write(f"a/{name}", pixels, **options)
        save_deep(f"b/{name}", pixels)
    transparent = []
    for pixels, depth in ((colour, 8), (deep, 16)):
        save_deep(f"a/alpha{depth}.png", translucent(pixels))
        tiff(f"a/alpha{depth}.tif", translucent(pixels), extrasamples=["unassalpha"])
        transparent += [f"alpha{depth}.png", f"alpha{depth}.tif"]
        for name in transparent[-2:]:
            save_deep(f"b/{name}", over_white(pixels))
    palette.save("a/transparent.png", transparency=int(index[0, 0]))
    save_deep("b/transparent.png", np.where((index == index[0, 0])[..., None], np.uint8(255), of_palette))
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        for name, pixels in (("x.png", colour), ("x.tif", colour), ("deep_x.png", noise[..., 0])):
            image = PIL.Image.fromarray(pixels)
            image.save(f"a/{orientation}{name}", exif=exif)
            image.getexif()[0x0112] = orientation
            save_deep(f"b/{orientation}{name}", np.asarray(PIL.ImageOps.exif_transpose(image)))
    for folder, deep, value in (("a", 1000, 0.5), ("b", 1100, 0.6)):
        tiff(f"{folder}/float.tif", np.full((24, 24, 3), value, np.float32))
        save_deep(f"{folder}/near.png", np.full((24, 24, 3), deep, np.uint16))

    status, out, told = command("a", "b", "--json", "-", "--convention", "dm_pix")
    assert (status, told) == (0, ["jax-msssim: a/alpha16.png and 4 more: transparent, compared over white"])
    found = {pair["test"].removeprefix("b/"): pair["psnr"] for pair in json.loads(out)["pairs"]}
    # Differences of 0.1, where white is 1, and of 100, which 8 bits would not see, where it is 65535.
    assert found.pop("float.tif") == pytest.approx(20, abs=1e-4)
    assert found.pop("near.png") == pytest.approx(20 * np.log10(655.35), abs=1e-4)
    # Rounded to float32, by 6e-8 of white: 144 decibels.
    assert all(value is None or value > 130 for value in [found.pop(name) for name in transparent])
    assert len(found) == len(files) + 1 + 8 * 3
    assert set(found.values()) == {None}  # infinite


def test_letters_that_stdout_lacks_and_what_libraries_tell(tmp_path):
    # libpng minds that what is deep is interlaced. And stdout has not every letter, redirected on Windows.
    (tmp_path / "a").mkdir()
    interlaced(tmp_path / "a" / "写真.png", np.full((24, 24, 3), 1000, np.uint16))
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    command = [*COMMAND, "a", "a", "--convention", "dm-pix"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, env=environment)
    assert b"PNG" not in process.stderr
    assert process.stdout.splitlines()[-1] == b"worst\t\\u5199\\u771f.png\tinf\t1\t0"


# --- What people do wrong --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    pixels = crop(60, 60)
    small = np.zeros((20, 20), np.uint8)
    jpeg = save(folder / "a.jpg", pixels).read_bytes()
    save(folder / "a.png", pixels)
    save(folder / "folder/a.png", pixels)
    save(folder / "named/b.png", pixels)
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other/a.heic").touch()
    save_deep(folder / "deep.png", pixels.astype(np.uint16))
    frames = [PIL.Image.fromarray(x) for x in (pixels, 255 - pixels)]
    for name in ("frames.png", "frames.gif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    (folder / "deep.ppm").write_bytes(b"P6 20 20 65535\n" + bytes(2400))
    (folder / "10bits.pgm").write_bytes(b"P5 20 20 1023\n" + bytes(800))
    signed = imagecodecs.jpeg2k_encode(small.astype(np.int16), level=0)
    (folder / "signed.jp2").write_bytes(signed)
    PIL.Image.new("CMYK", (20, 20)).save(folder / "cmyk.jpg")
    for name, array, options in [
        ("compressed", pixels, {"photometric": "rgb", "compression": "jpeg"}),
        ("deflated", pixels, {"photometric": "rgb", "compression": "zlib"}),
        ("pages", np.stack([small, small]), {}),
        ("long", small.astype(np.int32), {}),
        ("nan", small.astype(np.float32) * np.nan, {}),
        ("alpha", np.stack([small] * 4, -1), {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
        ("float_alpha", np.zeros((20, 20, 4), np.float32), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        ("lab", pixels, {"photometric": "cielab"}),
        ("volume", np.zeros((16, 16, 16), np.uint8), {"volumetric": True, "tile": (16, 16, 16)}),
        ("missing", small.astype(np.float32) - 9999, {"extratags": [(42113, 2, 0, "-9999", True)]}),
        ("lowest", small + np.finfo(np.float32).min, {}),
    ]:
        tifffile.imwrite(folder / f"{name}.tif", array, **options)
    with tifffile.TiffFile(folder / "deflated.tif") as file:
        start = file.pages.first.dataoffsets[0]
    whole = (folder / "deflated.tif").read_bytes()
    deep = (folder / "deep.png").read_bytes()
    (folder / "garbled.tif").write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
    (folder / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cut.png").write_bytes(deep[: len(deep) // 2])
    (folder / "cut.tif").write_bytes((folder / "compressed.tif").read_bytes()[:-200])
    (folder / "empty.png").touch()
    (folder / "text.webp").write_text("no picture at all, but some text instead")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("missing.png a.png", "missing.png: no such file or folder"),
        ("folder missing", "missing: no such file or folder"),
        ("empty.png a.png", "empty.png: not a PNG"),
        ("text.webp a.png", "text.webp: not a PNG"),
        ("cut.jpg a.png", "cut.jpg: cannot be read: image file is truncated"),
        ("cut.png a.png", "cut.png: cannot be read: image file is truncated"),
        ("cut.tif a.png", "cut.tif: is truncated"),
        ("garbled.tif a.png", "garbled.tif: cannot be decoded"),
        ("frames.png a.png", "frames.png: has 2 frames"),
        ("frames.gif a.png", "frames.gif: has 2 frames"),
        ("deep.ppm a.png", "deep.ppm: says that white is 65535"),
        ("10bits.pgm a.png", "10bits.pgm: says that white is 1023"),
        ("signed.jp2 a.png", "signed.jp2: holds int16 samples"),
        ("missing.tif a.png", "missing.tif: has 400 samples without data, -9999 by its tag GDAL_NODATA"),
        ("lowest.tif a.png", "lowest.tif: holds pixels beyond 1e+15"),
        ("pages.tif a.png", "pages.tif: has 2 pages"),
        ("long.tif a.png", "long.tif: has 32 bits a sample"),
        ("nan.tif a.png", "nan.tif: holds NaN"),
        ("alpha.tif a.png", "alpha.tif: has extra channels (ASSOCALPHA)"),
        ("float_alpha.tif a.png", "float_alpha.tif: has extra channels (UNASSALPHA)"),
        ("lab.tif a.png", "lab.tif: holds CIELAB colours"),
        ("cmyk.jpg a.png", "cmyk.jpg: holds CMYK colours"),
        ("volume.tif a.png", "volume.tif: has the axes ZYX"),
        ("a.png deep.png", "a.png and deep.png: their white is 255 and 65535"),
        ("a.png folder", "a.png and folder: one is a folder, the other is not"),
        ("folder named", "folder and named: no image of one has the name of one of the other, folder/a.png say"),
        ("empty other", "empty and other: no PNG, JPEG, JPEG 2000, TIFF"),
        ("a.png a.png --csv nowhere/x.csv", "nowhere/x.csv: cannot be written: there is no such folder"),
        ("a.png a.png --json folder", "folder: cannot be written: it is not a file"),
        ("a.png a.png --csv /dev/null", "/dev/null: cannot be written: it is not a file"),
        ("folder folder --map m.png", "--map takes two files"),
        ("a.png a.png --csv - --json -", "--csv and --json cannot both go to stdout"),
        ("a.png a.png --fit-scales --convention KORNIA", "--fit-scales: this convention has no MS-SSIM"),
        ("a.png a.png --convention PYTORCH", "error: argument --convention: unknown name 'PYTORCH': use one of MATLAB"),
        ("a.png a.png --map map.jpg", "error: argument --map: the map is a PNG: its name must end in .png"),
        ("a.png a.png --max-val 0", "error: argument --max-val: must be a number between"),
        ("a.png a.png --max-val white", "error: argument --max-val: must be a number between"),
    ],
)
def test_one_line_and_status_2(arguments, message, wrong_files, command, monkeypatch):
    monkeypatch.chdir(wrong_files)
    status, out, told = command(*arguments.split())
    assert (status, out, len(told)) == (2, "", 1)
    assert told[0].startswith(f"jax-msssim: {message}")


def test_disk_full(command, monkeypatch):
    # What was there stays, nothing is left beside it, and the table is shown.
    a = save("a.png", crop(20, 20))
    Path("x.csv").write_text("before")

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    status, out, told = command(a, a, "--convention", "dm_pix", "--csv", "x.csv")
    assert (status, told) == (2, ["jax-msssim: x.csv: cannot be written: No space left on device"])
    assert values_of(out)["ssim"] == "1"
    assert Path("x.csv").read_text() == "before"
    assert sorted(os.listdir()) == ["a.png", "x.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["PIL", "imagecodecs", "matplotlib", "platformdirs", "tifffile"])
def test_missing_package(package, tmp_path):
    a = save(tmp_path / ("a.tif" if package == "tifffile" else "a.png"), crop(20, 20))
    code = f"import sys; sys.modules[{package!r}] = None; from jax_msssim.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [a, a, "--map", tmp_path / "m.png", "--convention", "dm_pix"]
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr == f'jax-msssim: {package} is not installed: pip install "jax_msssim[cli]"\n'


@pytest.mark.slow
def test_stdout_that_is_full_or_closed(tmp_path):
    a = save(tmp_path / "a.png", crop(20, 20))
    command = [*COMMAND, a, a, "--convention", "dm_pix", "--csv", "-"]
    with open("/dev/full", "w") as full:
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.endswith("jax-msssim: cannot write: No space left on device\n")

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # the reader leaves before anything is written
        told = process.stderr.read()
    assert process.returncode == 0
    assert "BrokenPipe" not in told


@pytest.mark.slow
@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="a shell's job in the background")
def test_interrupt(tmp_path):
    for i in range(40):  # their program takes seconds to compile
        save(tmp_path / "a" / f"{i:02}.png", crop(400 + i, 400 + i, top=0, left=0))
    (tmp_path / "a/00.png").write_text("no picture, of which it tells while the others are at work")
    arguments = ["a", "a", "--csv", "x.csv", "--convention", "torchmetrics", "--no-cache"]
    with subprocess.Popen([*COMMAND, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert "a/00.png" in process.stderr.readline()
        # Once in a while, with every core busy, one is lost: one more would end it, as a person would find.
        for _ in range(9):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
                break
        told = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in told
    assert os.listdir(tmp_path) == ["a"]


def test_help_and_version(command):
    status, text, _ = command("--help")
    page = (ROOT / "docs" / "command_line.md").read_text()
    assert status == 0
    assert f"```text\n$ jax-msssim --help\n{text}```" in page
    assert all(name in page for name in conventions.ALL)
    assert command("--version")[:2] == (0, f"jax_msssim {jax_msssim.__version__}\n")
