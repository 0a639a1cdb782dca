"""A hospital's report of its own images: what it shows, that it stays small, and that it says what it is."""

import io
import re
import stat

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as Pillow

import browser
from test_report import CONTRAST, OVERFLOW, Page, chromium, luminance  # noqa: F401  # chromium is a fixture
from voxring.cli import voxring
from voxring.images import Image
from voxring.images.image import Grid
from voxring.maps import local_mean
from voxring.report.local import ALARM, COLOURS, fullest, local_report, mean_plane, overlay
from voxring.report.png import png
from voxring.report.style import COLOURS as STYLE
from voxring.study import Study

CLASSES = {"lesion": 1, "liver": 2, "rare <b>": 3}
STUDY = Study.of(name="livers", classes=CLASSES, window={"size": 3})


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """A manifest of four images: 3D, 2D, one whose ground truth has another grid, one without ground truth."""
    folder = tmp_path_factory.mktemp("hospital")
    draw = np.random.default_rng(5)
    truth = np.zeros((6, 40, 50), np.uint8)
    truth[2:5, 5:20, 5:20], truth[4, 25:30, 30:40] = 1, 2
    pairs = {
        "volume": (draw.integers(-900, 900, truth.shape, np.int16), truth),
        "flat": (draw.normal(size=(30, 700)).astype(np.float32), np.full((30, 700), 2, np.uint8)),
        "other-grid": (draw.integers(0, 9, (8, 8), np.int16), np.ones((8, 9), np.uint8)),
        "empty": (draw.integers(0, 9, (4, 8, 8), np.int16), np.zeros((4, 8, 8), np.uint8)),
    }
    lines = ["image,ground_truth,patient"]
    for name, (image, labels) in pairs.items():
        np.save(folder / f"{name}.npy", image)
        np.save(folder / f"{name}-truth.npy", labels)
        lines.append(f"{name}.npy,{name}-truth.npy,Mrs Secret")
    (folder / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    (folder / "study.toml").write_text(
        'name = "livers"\nclasses = { lesion = 1, liver = 2, "rare <b>" = 3 }\n[window]\nsize = 3\n', encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def report(hospital):
    return local_report(STUDY, hospital / "manifest.csv")


def test_it_says_in_large_that_it_must_not_leave(report):
    page = Page(report)
    assert page.text[page.text.index(ALARM[0]) :][:2] == list(ALARM)
    assert report.index(ALARM[0]) < report.index("<header>")
    assert "Mrs Secret" not in report


def test_it_fetches_nothing_and_its_pictures_stand_in_it(report):
    page = Page(report)
    assert page.faults == []
    sources = page.attributes("src")
    assert len(sources) == 6
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]+", source) for source in sources)
    assert all(attributes["alt"] for name, attributes in page.elements if name == "img")
    (policy,) = [a["content"] for n, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "img-src data:;" in policy


def test_numbers_of_each_class_are_those_of_the_image(report, hospital):
    image, truth = np.load(hospital / "volume.npy"), np.load(hospital / "volume-truth.npy")
    inside = image[truth == 1]
    text = Page(report).text
    row = text[next(i for i, t in enumerate(text) if t == f"{inside.size:,}") :][:4]
    assert row == [
        f"{inside.size:,}",
        *(f"{value:,.6g}".replace("-", "−") for value in (inside.min(), inside.mean(), inside.max())),
    ]
    assert "rare <b>" in text
    assert "Plane 5 of 6: ground truth over the image." in text  # the one plane that has two classes


def test_a_bad_image_is_told_and_the_others_are_shown(report):
    text = "".join(Page(report).text)
    assert "Not shown: other-grid-truth.npy does not lie on the grid of other-grid.npy" in text
    assert "cannot be used, as said below" in text
    assert "No voxel has a class of the study." in text


def test_no_more_images_are_shown_than_asked_for(hospital):
    page = Page(local_report(STUDY, hospital / "manifest.csv", most=1))
    assert len(page.attributes("src")) == 2
    assert "1 of 4" in page.text


@pytest.mark.parametrize("shape", [(7, 5), (5, 9, 3), (1, 1)])
def test_a_png_is_read_back_as_it_was(shape):
    pixels = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    with Pillow.open(io.BytesIO(png(pixels))) as picture:
        picture.verify()
    with Pillow.open(io.BytesIO(png(pixels))) as picture:
        assert (np.array(picture) == pixels).all()


def test_an_overlay_colours_the_voxels_of_a_class_alone():
    grey = np.full((2, 3), 100, np.uint8)
    mask = np.array([[True, False, False], [False, False, True]])
    painted = overlay(grey, [np.zeros_like(mask), mask])
    assert (painted[~mask] == 100).all()
    assert painted[mask].tolist() == [[50, 110, 144]] * 2  # half of #0079bd, to even


@pytest.mark.parametrize("border", ["reflect", "mirror", "nearest", "constant", "clip"])
@pytest.mark.parametrize("size", [3, 4, (5, 1, 3)])
def test_a_plane_of_local_means_is_that_of_the_whole_map(border, size):
    voxels = np.random.default_rng(4).integers(-99, 99, (9, 8, 7), np.int16)
    study = Study.of(
        name="t", classes=CLASSES, window={"size": size, "border": border, "fill": 6.0 * (border == "constant")}
    )
    image = Image(voxels, 2.0, 4.0, Grid(voxels.shape))
    whole = local_mean(voxels, size, border, fill=1.0)
    for plane in range(len(voxels)):
        assert (mean_plane(image, plane, study) == whole[plane]).all()


def test_the_plane_with_the_most_classes_is_shown():
    one, two = np.zeros((2, 4, 3, 3), bool)
    assert fullest([one, two]) == 2
    one[1] = True
    assert fullest([one, two]) == 1
    one[3, 0, 0] = two[3, 1, 1] = True
    assert fullest([one, two]) == 3


def test_colours_of_classes_are_told_from_the_page():
    for colour in COLOURS:
        for ground in STYLE["sheet"]:
            low, high = sorted((luminance(colour), luminance(ground)))
            assert (high + 0.05) / (low + 0.05) >= 3, (colour, ground)


def test_the_command_writes_for_the_owner_alone_and_asks_for_local(hospital, tmp_path):
    out = tmp_path / "local.html"
    arguments = [
        "report",
        str(hospital / "study.toml"),
        str(hospital / "manifest.csv"),
        "--out",
        str(out),
        "--images",
        "2",
    ]
    refused = CliRunner().invoke(voxring, arguments)
    assert refused.exit_code == 2
    assert "--local" in refused.output
    assert not out.exists()
    done = CliRunner().invoke(voxring, [*arguments, "--local"])
    assert done.exit_code == 0, done.output
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "must not leave" in done.output
    assert "volume" not in done.output
    assert len(Page(out.read_text(encoding="utf-8")).attributes("src")) == 4


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_opens_alone_fits_and_can_be_read(chromium: browser.Browser, report, tmp_path, width, dark):  # noqa: F811
    path = tmp_path / "local.html"
    path.write_text(report, encoding="utf-8")
    chromium.open(path, width=width, dark=dark)
    assert [address for address in chromium.requests if not address.startswith("data:image/png")] == [path.as_uri()]
    assert chromium.complaints == []
    assert chromium.run("[...document.images].every((image) => image.naturalWidth > 0)")
    assert chromium.run("document.documentElement.scrollWidth") <= width
    assert chromium.run(OVERFLOW) == []
    assert chromium.run(CONTRAST)[1] == []
