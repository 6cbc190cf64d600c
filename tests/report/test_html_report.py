"""The HTML report: complete, safe and bounded as a file, and in a real browser it shows what the volumes hold."""

from __future__ import annotations

import base64
import gc
import json
import os
import re
import select
import shutil
import subprocess
import time
import weakref
import zlib

import numpy as np
import pytest
from semsynth.data.label_files import LABEL_COLOURS
from semsynth.errors import InputError
from semsynth.prepare.composite import CompositeLabel
from semsynth.prepare.phantom import make_phantom
from semsynth.report.html import CaseValues, write_html
from semsynth.report.html_pictures import CasePicture
from semsynth.report.pictures import centre_of, plane
from semsynth.report.tables import Cell, Column, Table

ODD = '<b>&"x"</b><script>alert(1)</script>'
SPACING = (3.0, 3.0, 4.5)
METRICS = {
    "psnr": Column("PSNR (dB)", "higher", "peak 1"),
    "mae": Column("MAE", "lower"),
    "dice": Column(f"Dice {ODD}", "higher", ODD),
}
# case, system, group → PSNR; one infinite, one NaN, one missing
PSNR = {
    ("a", "net", "unseen"): 18.0,
    ("a", "paint", "unseen"): 21.5,
    ("b", "net", "unseen"): float("nan"),
    ("b", "paint", "unseen"): 16.25,
    (ODD, "net", "training"): 25.0,
    ("same", "paint", "training"): float("inf"),
    ("without", "net", "training"): None,
}
WORST_FIRST = ["b", "a", "a", ODD, "same", "b", "without"]


def volumes(seed, shape=(40, 32, 24)):
    phantom = make_phantom(seed, size=shape, spacing=SPACING)
    label = CompositeLabel(k=2)(phantom.image, phantom.endo, phantom.wall)
    return (phantom.image / phantom.image.max()).astype(np.float32), np.asarray(label, dtype=np.uint8)


def picture_of(case, system, group):
    real, label = volumes(sum(case.encode()) % 50)
    noise = np.random.default_rng(len(system)).normal(0, 0.1, real.shape).astype(np.float32)
    synthetic = real.copy() if case == "same" else np.clip(0.8 * real + 0.1 + noise, 0, 1)
    label_too = None if case == ODD else label  # one case has no label map
    return CasePicture(case, system, group, synthetic, real, label_too, SPACING, centre_of(label))


def values_of(key):
    psnr = PSNR[key]
    mae = float("nan") if key[:2] == ("b", "paint") else 0.1
    return CaseValues(*key, {"mae": mae, "dice": len(key[0]) / 50} | ({} if psnr is None else {"psnr": psnr}))


def write(path, **changes):
    table = Table(
        f"Fidelity {ODD}",
        [Column("System"), Column("PSNR (dB)", "higher", f"about {ODD}")],
        [[Cell("net"), Cell("—", None, f"too few cases {ODD}")], [Cell(ODD), Cell("20.1", 20.1)]],
        [f"a note {ODD}"],
    )
    content = {
        "title": f"Evaluation {ODD}",
        "about": [("command", f"semsynth evaluate {ODD} {{{{data}}}} " + "x" * 200), ("data", "{{pictures}}")],
        "tables": [table],
        "metrics": METRICS,
        "cases": [values_of(key) for key in PSNR],
        "pictures": (picture_of(*key) for key in PSNR if key[0] != "without"),
    }
    return write_html(path, **{**content, **changes})


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write(tmp_path_factory.mktemp("html") / "report.html")


def embedded(path):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    return json.loads(found[1])


def small(seed=0, **changes):
    content = {"case": f"c{seed}", "system": "net", "group": "unseen", "label": None, "spacing": (1, 1, 1)}
    real = np.random.default_rng(seed).random((8, 9, 10))
    return CasePicture(**{**content, "synthetic": real[::-1], "real": real, "centre": (4, 4, 5), **changes})


# ---- the file --------------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_from_elsewhere(report):
    text = report.read_text("utf-8")
    assert "http://" not in text and "https://" not in text
    assert not re.search(r"<(link|script|img|iframe)[^>]*(src|href)=(?!\"data:)", text)
    assert "default-src 'none'" in text


def test_text_of_the_data_cannot_become_markup(report):
    text = report.read_text("utf-8")
    assert "<script>alert" not in text and "<b>" not in text
    assert "&lt;b&gt;&amp;&quot;x&quot;&lt;/b&gt;" in text
    assert embedded(report)["rows"][3]["case"] == ODD
    assert text.count("{{data}}") == 2 and text.count("{{pictures}}") == 1  # braces of the facts stay as they are


def test_values_that_json_does_not_know_travel_as_words(report):
    found = {(row["case"], row["system"]): row["values"][0] for row in embedded(report)["rows"]}
    assert found["same", "paint"] == "inf" and found["b", "net"] == "nan" and found["without", "net"] is None
    assert found["b", "paint"] == 16.25


def test_a_failure_leaves_nothing_behind(tmp_path):
    def pictures():
        yield small()
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write(tmp_path / "report.html", pictures=pictures())
    assert list(tmp_path.iterdir()) == []


def test_an_older_report_survives_a_failure(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    wrong = small(synthetic=np.zeros((8, 9, 11)))
    with pytest.raises(InputError, match=r"c0 of net: needs 3D volumes on one grid, found synthetic \(8, 9, 11\)"):
        write(path, pictures=[wrong])
    with pytest.raises(InputError, match="slices must be at least 1"):
        write(path, slices=0)
    assert path.read_text() == "old"


def test_one_picture_is_held_at_a_time(tmp_path):
    made, alive = [], []

    def pictures():
        for seed in range(5):
            gc.collect()
            alive.append(sum(reference() is not None for reference in made))
            picture = small(seed)
            made.append(weakref.ref(picture))
            yield picture
            del picture

    write(tmp_path / "report.html", pictures=pictures())
    assert alive == [0] * 5


def test_a_case_takes_less_than_250_kb(tmp_path):
    rng = np.random.default_rng(0)
    real, label = volumes(3, (128, 96, 64))
    noisy = np.clip(real + rng.normal(0, 0.02, real.shape), 0, 1)
    case = small(real=real, synthetic=noisy, label=label, centre=centre_of(label))
    other = small(real=real, synthetic=noisy[::-1], label=label, centre=centre_of(label), system="paint")
    empty, one, two = (
        write(tmp_path / "r.html", pictures=pictures).stat().st_size for pictures in ([], [case], [case, other])
    )
    assert one - empty < 250_000
    assert two - one < 0.8 * (one - empty)  # systems share the real scan and the label map of a case


def test_slices_go_through_the_centre_and_stay_inside_the_content(tmp_path):
    label = np.zeros((20, 20, 40), dtype=np.uint8)
    label[5:15, 5:15, 10:31] = 1
    real = np.linspace(0, 1, label.size).reshape(label.shape)
    case = small(real=real, synthetic=real, label=label, centre=(9, 9, 22))
    axial, coronal, _ = embedded(write(tmp_path / "r.html", pictures=[case]))["pictures"][0]["planes"]
    assert axial["positions"] == [14, 18, 22, 25, 27] and axial["first"] == 2 and axial["axis"] == "z"
    assert coronal["width"] == 20 and coronal["height"] == 40 and 9 in coronal["positions"]
    flat = small(real=real[..., :1], synthetic=real[..., :1], centre=(9, 9, 0))
    assert embedded(write(tmp_path / "r.html", pictures=[flat]))["pictures"][0]["planes"][0]["positions"] == [0]


def test_the_embedded_bytes_are_the_slices(tmp_path):
    case = small(7)
    path = write(tmp_path / "r.html", pictures=[case])
    packed = re.search(r'id="blob-1">(.*?)<', path.read_text("utf-8"))[1]
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    axial = embedded(path)["pictures"][0]["planes"][0]
    wanted = np.rint(255 * plane(case.real, "axial", (4, 4, axial["positions"][0])))
    assert np.array_equal(unpredicted(raw[: wanted.size].reshape(wanted.shape)), wanted)


def unpredicted(residual):
    """The median edge detector as its standard has it, voxel by voxel."""
    out = np.zeros((residual.shape[0] + 1, residual.shape[1] + 1), dtype=int)
    for y, x in np.ndindex(*residual.shape):
        left, up, corner = out[y + 1, x], out[y, x + 1], out[y, x]
        guess = (
            min(left, up)
            if corner >= max(left, up)
            else max(left, up)
            if corner <= min(left, up)
            else left + up - corner
        )
        out[y + 1, x + 1] = (guess + residual[y, x]) % 256
    return out[1:, 1:]


def test_histograms_count_every_voxel_of_all_cases_together(report):
    content = embedded(report)
    by_system = {(t["system"], t["group"]): t for t in content["totals"]}
    assert sum(total["cases"] for total in content["totals"]) == 6
    assert [sum(kind) for kind in by_system["net", "unseen"]["all"]] == [2 * 40 * 32 * 24] * 2
    foreground = sum(int((volumes(sum(case.encode()) % 50)[1] > 0).sum()) for case in "ab")
    assert [sum(kind) for kind in by_system["net", "unseen"]["foreground"]] == [foreground] * 2
    assert "foreground" not in by_system["net", "training"]  # its one case has no label map


def test_volumes_with_nan_and_without_contrast_are_written(tmp_path):
    real = np.full((8, 8, 8), np.nan)
    described = embedded(write(tmp_path / "r.html", pictures=[small(real=real, synthetic=real)]))["pictures"][0]
    assert described["auto"] == [0.0, 1.0] and described["histograms"]["all"][0][0] == 512


def test_a_report_without_cases_and_pictures_is_one_too(tmp_path):
    path = write(tmp_path / "r.html", tables=[], cases=[], pictures=[], metrics={}, about=[])
    assert embedded(path)["rows"] == [] and embedded(path)["pictures"] == []


# ---- the page --------------------------------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--window-size=1300,1400", "--blink-settings=preferredColorScheme=1", "--remote-debugging-pipe",
]  # fmt: skip
LOAD_S = 20.0


class Browser:
    """A headless Chromium, told what to do over two pipes (DevTools protocol); notes its requests and complaints."""

    def __init__(self, profile):
        import fcntl  # not on Windows

        # the browser reads from descriptor 3 and writes to 4; high numbers first, so that the two do not collide
        (r1, w1), (r2, w2) = os.pipe(), os.pipe()
        ends = [fcntl.fcntl(r1, fcntl.F_DUPFD, 50), fcntl.fcntl(w2, fcntl.F_DUPFD, 50)]

        def give():
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(3, 4), preexec_fn=give, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in (r1, w2, *ends):
            os.close(end)
        self._to, self._from, self._rest, self._number = w1, r2, b"", 0
        self.requests, self.complaints = [], []
        targets = self("Target.getTargets", session=None)["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = None
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, session="own", **parameters):
        """Send a command, wait for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session == "own" and self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self):
        while b"\0" not in self._rest:
            assert select.select([self._from], [], [], LOAD_S)[0], "the browser does not answer"
            chunk = os.read(self._from, 1 << 20)
            assert chunk, "the browser has ended"
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        event = json.loads(message)
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(event["params"])
        return event

    def evaluate(self, script):
        """The value of an expression in the page; promises are awaited."""
        answer = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition):
        """Until an expression is true in the page."""
        end = time.monotonic() + LOAD_S
        while not self.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.03)

    def open(self, path, view=""):
        """Load the page anew with a view behind its #."""
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=path.as_uri() + view)
        self.wait("document.documentElement?.dataset.ready || document.documentElement?.dataset.error")

    def click(self, selector):
        """A real click of the mouse in the middle of an element."""
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        x, y = self.evaluate(f"(b => [b.x + b.width / 2, b.y + b.height / 2])"
                             f"(document.querySelector({selector!r}).getBoundingClientRect())")  # fmt: skip
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self):
        self("Browser.close", session=None)
        self._process.wait(10)
        os.close(self._to)
        os.close(self._from)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH; the page itself is not tested")
    if os.name != "posix":
        pytest.skip("the browser is spoken to over inherited descriptors, which takes a POSIX system")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


ROWS = "[...document.querySelectorAll('#rows tbody tr')].filter(r => !r.hidden)"
CARDS = "[...document.querySelectorAll('.card')].filter(c => !c.hidden)"


def cases_shown(browser):
    return browser.evaluate(f"{ROWS}.map(r => r.cells[0].textContent)")


def card(browser, report, key, view=""):
    """Open the page at the picture of a case, wait until it is drawn; gives the card's number and its description."""
    described = embedded(report)["pictures"]
    number = next(i for i, p in enumerate(described) if (p["case"], p["system"], p["group"]) == key)
    browser.open(report, f"#picture={number}&{view}")
    browser.wait(f"document.getElementById('picture-{number}').dataset.state === 'drawn'")
    return number, described[number]


def pixels(browser, number, name):
    """RGB of a canvas ``(rows, columns, 3)``, averaged over what each voxel covers."""
    encoded = browser.evaluate(f"""(() => {{
        const card = document.getElementById('picture-{number}').card, canvas = card.views[{name!r}].canvas;
        const {{data}} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        return [canvas.width, canvas.height, btoa(Array.from(data, c => String.fromCharCode(c)).join(''))];
    }})()""")
    width, height, text = encoded
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3].astype(float)


def windowed(cut, low, high):
    return 255 * np.clip((np.rint(255 * cut) / 255 - low) / (high - low), 0, 1)


def test_the_page_opens_without_complaint_and_asks_the_network_for_nothing(browser, report):
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(report)
    browser.wait("document.documentElement.dataset.unpacked === 'all'")
    assert browser.evaluate("document.documentElement.dataset.error ?? null") is None
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith(("file://", "data:"))] == []
    assert browser.evaluate("document.title") == f"Evaluation {ODD}"
    assert browser.evaluate("document.querySelectorAll('b:not(.facts-line b)').length") == 0


def test_an_injected_script_does_not_run(browser, report, tmp_path):
    path = tmp_path / "injected.html"
    path.write_text(report.read_text("utf-8").replace("<main>", "<main><script>document.bad = 1</script>"), "utf-8")
    browser.open(path)
    assert browser.evaluate("document.bad ?? 'did not run'") == "did not run"


def test_the_worst_come_first_and_what_has_no_value_last(browser, report):
    browser.open(report)
    assert cases_shown(browser) == WORST_FIRST
    assert browser.evaluate("document.querySelector('[data-sort=psnr]').parentElement.ariaSort") == "ascending"
    assert browser.evaluate(f"{CARDS}.map(c => c.card.case)") == WORST_FIRST[:-1]


def test_the_address_sorts_and_filters(browser, report):
    browser.open(report, "#sort=psnr&dir=desc")
    assert cases_shown(browser) == ["same", ODD, "a", "a", "b", "b", "without"]
    browser.evaluate("location.hash = '#system=paint'")
    browser.wait(f"{ROWS}.length === 3")
    assert cases_shown(browser) == ["b", "a", "same"]
    assert browser.evaluate(f"{CARDS}.map(c => c.card.case)") == ["b", "a", "same"]
    assert browser.evaluate("document.getElementById('count').textContent") == "3 of 7 rows"


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_not_a_number_stays_at_the_end_either_way(browser, report, direction):
    browser.open(report, f"#sort=mae&dir={direction}")
    assert cases_shown(browser) == [*WORST_FIRST[1:], "b"]


def test_nonsense_in_the_address_is_passed_over(browser, report):
    browser.open(report, "#sort=nothing&plane=up&window=9,1&slice=-4&system=none&picture=99&dir=x&diff=zero")
    assert browser.evaluate("document.documentElement.dataset.error ?? null") is None
    assert cases_shown(browser) == WORST_FIRST


def test_a_click_on_a_heading_sorts_worst_first_and_a_second_turns_it_round(browser, report):
    browser.open(report)
    browser.click("[data-sort=dice]")
    longest = sorted((key[0] for key in PSNR), key=len)
    assert [len(c) for c in cases_shown(browser)] == [len(c) for c in longest]
    browser.click("[data-sort=dice]")
    assert [len(c) for c in cases_shown(browser)] == [len(c) for c in reversed(longest)]
    browser.wait("location.hash === '#sort=dice&dir=desc'")  # the view can be passed on


def test_a_row_leads_to_its_picture(browser, report):
    browser.open(report)
    browser.click("#rows tbody tr:nth-child(2) a")
    browser.wait("location.hash.includes('picture=')")
    place = browser.evaluate(
        "(c => [c.card.case, c.card.system, c.getBoundingClientRect().y])(document.querySelector('.card.marked'))"
    )
    assert place[:2] == ["a", "net"] and 0 <= place[2] < 700


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.2, 0.6)])
@pytest.mark.parametrize(("name", "slice_"), [("axial", 1), ("coronal", 4)])
def test_canvases_show_the_windowed_slices(browser, report, name, slice_, low, high):
    key = ("a", "net", "unseen")
    number, described = card(browser, report, key, f"plane={name}&slice={slice_}&window={low},{high}")
    picture = picture_of(*key)
    centre = list(picture.centre)
    position = next(p for p in described["planes"] if p["name"] == name)["positions"][slice_ - 1]
    centre["xyz".index({"axial": "z", "coronal": "y"}[name])] = position
    for kind in ("synthetic", "real"):
        wanted = windowed(plane(getattr(picture, kind), name, centre), low, high)
        shown = pixels(browser, number, kind)[..., 0]
        scale = shown.shape[1] // wanted.shape[1]
        middle = shown[:, scale // 2 :: scale][:, : wanted.shape[1]]
        rows = ((np.arange(wanted.shape[0]) + 0.5) * shown.shape[0] / wanted.shape[0]).astype(int)
        assert abs(shown.mean() - wanted.mean()) < 1.5
        assert np.corrcoef(middle[rows].ravel(), wanted.ravel())[0, 1] > 0.98  # the right way round, too
    data = browser.evaluate(f"({{...document.getElementById('picture-{number}').dataset}})")
    assert data["plane"] == name and data["slice"] == str(slice_) and data["window"] == f"{low:.3f},{high:.3f}"


def test_canvases_are_as_wide_and_high_as_the_plane_in_mm(browser, report):
    number, _ = card(browser, report, ("a", "net", "unseen"), "plane=coronal")
    ratio = browser.evaluate(
        f"(b => b.width / b.height)(document.querySelector('#picture-{number} canvas').getBoundingClientRect())"
    )
    assert ratio == pytest.approx(40 * 3.0 / (24 * 4.5), rel=0.02)


def test_the_difference_is_white_where_nothing_differs_and_red_where_the_synthetic_is_brighter(browser, report):
    number, _ = card(browser, report, ("same", "paint", "training"))
    assert (pixels(browser, number, "difference") == 255).all()
    number, _ = card(browser, report, ("a", "net", "unseen"), "diff=0.2")
    picture = picture_of("a", "net", "unseen")
    brighter = plane(picture.synthetic - picture.real, "axial", picture.centre)
    shown = pixels(browser, number, "difference")
    scale = shown.shape[1] // brighter.shape[1]
    middle = shown[scale // 2 :: scale, scale // 2 :: scale]
    redness = middle[..., 0] - middle[..., 2]
    assert redness[brighter > 0.08].mean() > 40 and redness[brighter < -0.08].mean() < -40


def test_label_maps_have_their_colours_and_outlines_can_be_drawn_over_images(browser, report):
    key = ("a", "net", "unseen")
    number, _ = card(browser, report, key, "window=0,1")
    label = plane(picture_of(*key).label, "axial", picture_of(*key).centre)
    shown = pixels(browser, number, "label")
    scale = shown.shape[1] // label.shape[1]
    wanted = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in LABEL_COLOURS])[label]
    assert np.array_equal(shown[scale // 2 :: scale, scale // 2 :: scale], wanted)
    assert (np.ptp(pixels(browser, number, "real"), axis=2) == 0).all()
    browser.click("#outline")
    browser.wait("location.hash.includes('outline=1')")
    assert (np.ptp(pixels(browser, number, "real"), axis=2) > 60).mean() > 0.01


def test_controls_change_plane_and_window(browser, report):
    number, described = card(browser, report, ("a", "net", "unseen"))
    data = f"document.getElementById('picture-{number}').dataset"
    assert browser.evaluate(f"{data}.window").split(",") == [f"{v:.3f}" for v in described["auto"]]
    browser.click("#look button[value=full]")
    browser.wait(f"{data}.window === '0.000,1.000'")
    browser.click("#look button[value=sagittal]")
    browser.wait(f"{data}.plane === 'sagittal'")
    browser.wait("location.hash.includes('plane=sagittal') && location.hash.includes('window=0,1')")
    browser.evaluate("(s => { s.value = 1; s.dispatchEvent(new Event('input')); })(document.getElementById('slice'))")
    browser.wait(f"{data}.slice === '1'")


def test_the_mouse_reads_values_and_drags_the_window(browser, report):
    key = ("a", "net", "unseen")
    number, _ = card(browser, report, key, "window=0,1")
    x, y = browser.evaluate(f"(b => [b.x + b.width / 2 + 3, b.y + b.height / 2 + 3])"
                            f"(cards[{number}].views.real.frame.getBoundingClientRect())")  # fmt: skip
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    cut = plane(picture_of(*key).real, "axial", picture_of(*key).centre)
    value = cut[cut.shape[0] // 2, cut.shape[1] // 2]  # the mouse is three pixels into the voxel after the middle
    browser.wait(f"cards[{number}].readout.textContent.includes('real {value:.2f} ·')")
    browser("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, button="left", buttons=1, clickCount=1)
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=x - 150, y=y, button="left", buttons=1)
    browser("Input.dispatchMouseEvent", type="mouseReleased", x=x - 150, y=y, button="left", clickCount=1)
    browser.wait(f"cards[{number}].node.dataset.window === '0.250,0.750'")
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)  # let go: nothing more happens
    assert browser.evaluate("state.window") == "0.250,0.750"


def test_a_case_without_label_map_has_no_panel_for_it(browser, report):
    number, _ = card(browser, report, (ODD, "net", "training"))
    assert browser.evaluate(f"document.querySelectorAll('#picture-{number} canvas').length") == 3
    assert "facts-line" in browser.evaluate(f"document.querySelector('#picture-{number} p').className")


def test_pictures_far_away_are_unpacked_later_and_hold_no_canvas(browser, tmp_path):
    many = [small(seed) for seed in range(40)]
    path = write(tmp_path / "many.html", cases=[], pictures=many)
    browser.open(path)
    browser.wait("document.documentElement.dataset.unpacked === 'all'")
    assert browser.evaluate("cards.filter(card => card.views.real.canvas.width > 0).length") < 12
    assert browser.evaluate("cards.every(card => card.voxels)")


def test_the_csv_holds_the_rows_that_are_shown(browser, report):
    browser.open(report, "#system=paint")
    text = browser.evaluate("""new Promise(resolve => {
        URL.createObjectURL = blob => { blob.text().then(resolve); return 'data:,'; };
        document.getElementById('csv').click();
    })""")
    lines = text.strip().splitlines()
    assert lines[0].lstrip("\ufeff").startswith("case,system,group,PSNR (dB),MAE,")
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["b", "paint", "unseen", "16.25"], ["a", "paint", "unseen", "21.5"], ["same", "paint", "training", "inf"]
    ]  # fmt: skip


def test_on_paper_every_picture_is_drawn(browser, report):
    browser.open(report)
    browser.wait("document.documentElement.dataset.unpacked === 'all'")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(f"{CARDS}.every(c => c.card.views.difference.canvas.width > 0)")
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
