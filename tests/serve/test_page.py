"""The page of the server in headless Chromium: its masks are those of the runtime, its controls work."""

import base64
import io
import json
import shutil
import time

import av
import numpy as np
import pytest
from PIL import Image

import runtime
from helpers import numpy_sam3

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no chromium in PATH", allow_module_level=True)

from helpers.server import Running
from helpers.waiting import wait_until
from runtime.models.sam3 import network
from runtime.prompts.json_prompts import parse_objects
from runtime.serve import wire
from runtime.serve.limits import Limits

BUNDLE = "engines/nano"
CLIP = f"{BUNDLE}/demo/clip.mp4"
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

# a copy of the layer of masks for each answer that the page shows
RECORD = """document.addEventListener('shown', ({ detail }) => (window.answers ??= []).push(
    { ...detail, drawn: document.getElementById('mask').toDataURL() }))"""


class Tab:
    """A page, what its sockets sent and received, and what the browser complained about."""

    def __init__(self, browser, host, **options):
        self.host, self.sent, self.received, self.complaints = host, [], [], []
        self._context = browser.new_context(**{"viewport": DESKTOP, **options})
        self.page = self._context.new_page()
        self.page.add_init_script(RECORD)
        self.page.on("websocket", self._record)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.goto(host.address)

    def _record(self, web_socket):
        web_socket.on("framesent", lambda message: self.sent.append(message))
        web_socket.on("framereceived", lambda message: self.received.append(message))

    def until(self, condition, seconds=60):
        """Wait for a JavaScript expression; `wait_for_function` needs what the page's policy forbids."""
        end = time.monotonic() + seconds
        while not (value := self.page.evaluate(condition)):
            assert time.monotonic() < end, (condition, self.text("#status"), self.text("#banner"), self.complaints)
            self.page.wait_for_timeout(50)
        return value

    def says(self, text, seconds=60):
        return self.until(f"document.getElementById('status').textContent.includes({json.dumps(text)})", seconds)

    def warns(self, text, seconds=60):
        banner = "document.getElementById('banner')"
        return self.until(f"!{banner}.hidden && {banner}.textContent.includes({json.dumps(text)})", seconds)

    def shows(self, number):
        """Wait until that many answers were drawn."""
        return self.until(f"(window.answers ?? []).length >= {number}")

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def choose(self, *ids):
        self.until("document.getElementById('status').textContent !== 'Loading…'")
        for name in ids:
            self.page.locator(f"label:has(#{name})").click()

    def at(self, x, y):
        """Return the place on the screen of a pixel of the video."""
        box = self.page.locator("#marks").bounding_box()
        width = self.page.evaluate("document.getElementById('picture').width")
        return box["x"] + x * box["width"] / width, box["y"] + y * box["width"] / width

    def check_masks(self, least):
        """Compare the layers of masks that were drawn with the runtime's, on the very pictures that the page sent."""
        answers = self.page.evaluate("window.answers ?? []")
        dropped = {m["tag"] for m in map(json.loads, filter(is_text, self.received)) if m["type"] == "dropped"}
        expected = replay(self.host.engine, self.sent, dropped)
        assert len(answers) >= least
        for answer in answers:
            result = expected[answer["tag"], answer["corrected"]].pop(0)
            assert tuple(entry["id"] for entry in answer["objects"]) == result.object_ids
            np.testing.assert_array_equal(indices(answer["drawn"], result.object_ids), index_map(result))
        return answers

    def close(self):
        self._context.close()


def is_text(message):
    return isinstance(message, str)


def replay(engine, sent, dropped):
    """Return the results of what one stream was sent, by tag and whether they are corrections."""
    limits, expected, waiting, session, tag = Limits(), {}, [], None, None
    for message in sent:
        if not is_text(message):
            header, picture = wire.split(message, limits)
            tag = header["tag"]
            if tag in dropped:
                continue
            pixels, prompts, seconds = wire.frame(header, picture, limits)
            waiting.append(tag)
            for result in session.push(pixels, *([prompts] if prompts else []), time=seconds):
                expected[waiting.pop(0), False] = [result]
            continue
        order = json.loads(message)
        if order["type"] == "start":
            start = wire.start(order, limits)
            session = engine.session(start.prompts, **start.options) if start.prompts else engine.live()
        elif order["type"] == "correct":
            result = session.correct(parse_objects(order["prompts"], limits.objects, limits.pixels))
            expected.setdefault((tag, True), []).append(result)
        elif order["type"] == "remove":
            session.remove(order["object"])
        elif order["type"] == "add_concept":
            session.add_concept(runtime.Concept(order["concept"]))
        elif order["type"] == "remove_concept":
            session.remove_concept(order["number"])
    for result in session.flush():
        expected[waiting.pop(0), False] = [result]
    session.close()
    return expected


def index_map(result):
    index = np.zeros(result.masks.shape[1:], np.uint8)
    for position, mask in enumerate(result.masks, 1):
        index[mask] = position
    return index


def indices(drawn, ids):
    """Return the position of the object whose colour each pixel has; colours of a canvas are rounded."""
    rgba = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.partition(",")[2]))).convert("RGBA")).astype(int)
    if not ids:
        return (rgba[..., 3] > 0).astype(np.uint8)
    colours = np.array([list(bytes.fromhex(wire.COLOURS[i % len(wire.COLOURS)][1:])) for i in ids])
    distance = np.abs(rgba[:, :, None, :3] - colours).max(axis=-1)
    assert distance.min(axis=-1)[rgba[..., 3] > 0].max(initial=0) <= 2
    return np.where(rgba[..., 3] > 0, distance.argmin(axis=-1) + 1, 0)


@pytest.fixture(scope="module")
def engine():
    with runtime.load(BUNDLE, backend="ort") as engine:
        yield engine


@pytest.fixture(scope="module")
def host(engine):
    host = Running(engine)
    yield host
    host.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    camera = tmp_path_factory.mktemp("camera") / "camera.y4m"
    with av.open(CLIP) as clip, camera.open("wb") as file:
        video = clip.streams.video[0]
        file.write(f"YUV4MPEG2 W{video.width} H{video.height} F10:1 Ip A1:1 C420jpeg\n".encode())
        for frame in clip.decode(video):
            file.write(b"FRAME\n" + frame.reformat(format="yuv420p").to_ndarray().tobytes())
    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as play:
        args = ["--no-sandbox", *fake, f"--use-file-for-fake-video-capture={camera}"]
        browser = play.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser, host):
    tabs = []

    def open_tab(host=host, **options):
        tabs.append(Tab(browser, host, **options))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        tab.close()


@pytest.fixture
def tab(open_tab):
    tab = open_tab()
    yield tab
    assert tab.complaints == []  # also violations of the Content-Security-Policy


# -- masks ------------------------------------------------------------------------------------------------------------


def test_the_demonstration_plays_with_one_press(tab):
    tab.says("Ready")
    assert "in every frame" in tab.text("#hero")
    tab.page.click("#hero-start")
    tab.says("Finished")
    answers = tab.check_masks(least=10)
    assert all(len(answer["objects"]) == 3 for answer in answers)
    assert [answer["time"] for answer in answers] == sorted(answer["time"] for answer in answers)
    assert "the house that shrinks" in tab.text("#objects")
    assert float(tab.text("#rate")) > 0 and tab.text("#latency")[-1] == "s"
    assert int(tab.text("#count")) == len(answers)


def test_sentences_on_the_camera(tab):
    tab.choose("source-camera")
    tab.page.fill("#words", "the crab in the video")
    tab.page.keyboard.press("Enter")
    tab.page.fill("#words", "the house that shrinks")
    tab.page.click("#start")
    tab.shows(20)
    tab.page.click("#start")
    tab.says("Stopped")
    assert {len(answer["objects"]) for answer in tab.check_masks(least=20)} == {2}


def test_another_sentence_while_it_runs_starts_again(tab):
    tab.choose("source-camera")
    tab.page.fill("#words", "the crab in the video")
    tab.page.click("#start")
    tab.shows(8)
    tab.page.fill("#words", "the house that shrinks")
    tab.page.click("#add")
    tab.until("window.answers.at(-1).objects.length === 2")
    tab.page.locator("#objects .remove").first.click()
    tab.until("window.answers.at(-1).objects.length === 1")
    assert tab.text("#objects").startswith("the house")
    tab.page.click("#clear")
    tab.says("asks the browser")
    assert tab.text("#objects") == ""


def test_clicks_boxes_corrections_and_removal(tab, tmp_path):
    tab.choose("source-file", "by-points")
    tab.page.set_input_files("#file", CLIP)
    tab.says("Click")
    tab.page.mouse.click(*tab.at(220, 100))  # the crab
    tab.shows(3)
    tab.page.keyboard.press("p")
    tab.says("Paused")
    tab.page.wait_for_timeout(500)
    count = len(tab.page.evaluate("window.answers"))
    tab.page.keyboard.press("n")
    tab.page.mouse.move(*tab.at(20, 60))
    tab.page.mouse.down()
    tab.page.mouse.move(*tab.at(160, 240), steps=3)
    tab.page.mouse.up()  # a box around the lion
    tab.shows(count + 1)
    tab.page.keyboard.down("Shift")
    tab.page.mouse.click(*tab.at(150, 80))
    tab.page.keyboard.up("Shift")
    tab.shows(count + 2)
    tab.page.keyboard.press("s")
    tab.shows(count + 3)
    tab.page.wait_for_timeout(300)
    assert len(tab.page.evaluate("window.answers")) == count + 3  # a step is one frame
    with tab.page.expect_download() as download:
        tab.page.click("#save")
    download.value.save_as(tmp_path / "masks.png")
    image = Image.open(tmp_path / "masks.png")
    assert image.mode == "P" and set(np.unique(image)) == {0, 1, 2}
    tab.page.locator("#objects input").first.fill("crab")
    tab.page.locator("#objects .remove").last.click()
    assert tab.page.locator("#marks .label").all_inner_texts() == ["crab"]
    drawn = tab.page.evaluate("document.getElementById('mask').toDataURL()")
    assert set(np.unique(indices(drawn, (1, 2)))) == {0, 1}  # its mask is gone from the frame in view
    tab.page.click("#pause")
    tab.says("Finished")
    answers = tab.check_masks(least=count + 4)
    assert [answer["corrected"] for answer in answers].count(True) == 2
    assert [entry["id"] for entry in answers[-1]["objects"]] == [1]
    crab = answers[-1]["objects"][0]["box"]
    assert crab[0] < 220 < crab[2] and crab[1] < 100 < crab[3]


def test_a_clip_waits_for_the_first_click(tab):
    tab.choose("by-points")
    tab.page.click("#start")
    tab.shows(1)
    tab.page.wait_for_timeout(500)
    assert tab.text("#count") == "1"
    tab.page.mouse.click(*tab.at(220, 100))
    tab.says("Finished")
    tab.check_masks(least=10)


def write_quadrants(path, size=(96, 160), rate=10, count=30):
    """Write a video of two red quadrants and a green one."""
    frame = numpy_sam3.picture(0, 3, size=size) | numpy_sam3.picture(1, channel=1, size=size)
    with av.open(path, "w") as file:
        video = file.add_stream("libvpx", rate=rate)
        video.height, video.width = size
        for _ in range(count):
            file.mux(video.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(video.encode())


def test_a_file_that_is_faster_than_the_server_ends(tab, tmp_path):
    write_quadrants(tmp_path / "large.webm", (720, 1280), 30, 15)
    tab.choose("source-file", "by-points")
    tab.page.set_input_files("#file", tmp_path / "large.webm")
    tab.says("Click")
    tab.page.mouse.click(*tab.at(200, 150))
    tab.says("Finished")
    answers = tab.check_masks(least=4)
    assert answers[0]["size"] == [576, 1024]
    times = [answer["time"] for answer in answers]
    assert times == sorted(times) and times[0] == 0 and times[-1] > 0.43  # the last frame too


def test_concepts(open_tab, numpy_sam3_bundle, tmp_path, monkeypatch):
    tokens = {"red": [1], "green": [2]}  # the bundle has no tokenizer
    encode = network.encode_concept
    monkeypatch.setattr(
        network, "encode_concept", lambda words, *a: encode(runtime.Text(tokens=tokens[words.text]), *a)
    )
    write_quadrants(tmp_path / "quadrants.webm")
    with numpy_sam3.load(numpy_sam3_bundle) as engine:
        host = Running(engine)
        try:
            tab = open_tab(host)
            tab.choose("source-file")
            tab.page.set_input_files("#file", tmp_path / "quadrants.webm")
            tab.page.fill("#words", "red")
            tab.page.click("#start")
            tab.until("window.answers?.at(-1).objects.length === 2")
            tab.page.fill("#words", "green")
            tab.page.click("#add")
            tab.until("window.answers.at(-1).objects.some(({ prompt }) => prompt === 2)")
            tab.page.click("#pause")
            tab.page.wait_for_timeout(500)
            assert tab.text("#objects").split()[:3] == ["red", "2", "found"]
            tab.page.locator("#objects .swatch").nth(1).click()
            tab.page.mouse.click(*tab.at(20, 20))
            tab.until("window.answers.at(-1).corrected")
            tab.page.get_by_label("Remove red", exact=True).click()
            tab.page.click("#pause")
            tab.says("Finished")
            assert {entry["prompt"] for entry in tab.check_masks(least=10)[-1]["objects"]} == {2}
            assert tab.complaints == []
        finally:
            host.close()


# -- controls ---------------------------------------------------------------------------------------------------------


def test_with_the_keyboard_alone(tab):
    tab.says("Ready")
    press = tab.page.keyboard.press

    def tab_to(selector):
        for _ in range(40):
            if tab.page.evaluate(f"document.activeElement.matches('{selector}')"):
                return
            press("Tab")
        raise AssertionError(f"no Tab leads to {selector}")

    tab_to("#by-text")
    press("ArrowRight")
    tab.says("Click")
    press("?")
    assert tab.page.locator("#help").is_visible()
    press("Escape")
    tab_to("#marks")
    for _ in range(3):
        press("ArrowRight")
    for _ in range(9):
        press("ArrowUp")
    press("Enter")
    tab.until("window.answers?.at(-1).objects.length === 1")
    press("p")
    tab.says("Paused")
    tab.page.wait_for_timeout(300)
    press("n")
    for _ in range(18):
        press("ArrowLeft")
    press("b")
    for _ in range(12):
        press("ArrowRight")
        press("ArrowDown")
    press("Enter")
    tab.until("window.answers.at(-1).objects.length === 2")
    assert tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus is seen
    tab_to("#start")
    press("Enter")
    tab.says("Stopped")
    tab.check_masks(least=2)


def test_every_control_has_a_name(tab):
    tab.says("Ready")
    nameless = """[...document.querySelectorAll('button, input, [role]')].filter((node) => node.checkVisibility() &&
        !(node.ariaLabel || node.textContent.trim() || node.labels?.length)).map((node) => node.outerHTML)"""
    assert tab.page.evaluate(nameless) == []


def test_on_a_phone(open_tab):
    tab = open_tab(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    tab.says("Ready")
    wide = "[...document.querySelectorAll('body *')].filter((node) => node.getBoundingClientRect().right > innerWidth)"
    for width in (320, PHONE["width"]):
        tab.page.set_viewport_size({**PHONE, "width": width})
        assert tab.page.evaluate(f"{wide}.map((node) => node.outerHTML)") == []
    small = "[...document.querySelectorAll('button')].filter((b) => b.offsetHeight > 0 && b.offsetHeight < 32).length"
    assert tab.page.evaluate(small) == 0
    tab.choose("by-points")
    tab.says("Click")
    tab.page.evaluate("scrollTo(0, 0)")
    tab.page.touchscreen.tap(*tab.at(220, 100))
    tab.until("window.answers?.at(-1).objects.length === 1")
    tab.page.tap("#pause")
    tab.page.tap("#exclude")
    tab.page.wait_for_timeout(300)
    tab.page.touchscreen.tap(*tab.at(250, 60))
    tab.until("window.answers.at(-1).corrected")
    assert '"labels":[0]' in tab.sent[-1]
    tab.check_masks(least=2)
    assert tab.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable(open_tab, scheme):
    tab = open_tab(color_scheme=scheme)
    tab.says("Ready")
    ratios = {name: contrast(tab.page, name) for name in ("body", "#status", "#hint", "#start", "#model")}
    assert min(ratios.values()) > 4.5, ratios


def contrast(page, selector):
    """Return the contrast of text and its background (WCAG 2)."""
    colours = page.evaluate(
        """(selector) => {
            let node = document.querySelector(selector);
            const text = getComputedStyle(node).color;
            while (getComputedStyle(node).backgroundColor.endsWith(', 0)')) node = node.parentElement;
            return [text, getComputedStyle(node).backgroundColor];
        }""",
        selector,
    )
    low, high = sorted(luminance([float(v) for v in c[c.index("(") + 1 : -1].split(",")[:3]]) for c in colours)
    return (high + 0.05) / (low + 0.05)


def luminance(rgb):
    linear = [c / 3294.6 if c <= 10.31 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_presses_in_quick_succession(open_tab):
    tab = open_tab()
    tab.says("Ready")
    tab.page.click("#start", click_count=3)
    tab.choose("source-camera", "source-file", "source-demo", "by-points", "by-text", "source-camera", "source-demo")
    tab.says("Ready")
    tab.page.dblclick("#start")
    tab.page.fill("#words", "the house that is going to the left")
    tab.page.click("#add")
    tab.page.locator("#objects .remove").first.click()
    tab.says("Finished")
    assert len(tab.page.evaluate("window.answers.at(-1).objects")) == 3
    tab.page.click("#start")
    tab.says("Following")
    tab.page.click("#start")
    tab.says("Stopped")
    wait_until(lambda: not tab.host.service.scheduler.streams)
    assert all("closed before the connection" in complaint for complaint in tab.complaints)


def test_a_click_after_the_end_returns_to_the_first_frame(tab):
    tab.choose("by-points")
    tab.says("Click")
    tab.page.mouse.click(*tab.at(220, 100))
    tab.says("Finished")
    shown = len(tab.page.evaluate("window.answers"))
    tab.page.mouse.click(*tab.at(220, 100))
    tab.says("first frame")
    tab.page.mouse.click(*tab.at(220, 100))
    tab.shows(shown + 1)
    assert tab.page.evaluate(f"window.answers[{shown}].time") == 0


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_video(tab, tmp_path):
    (tmp_path / "letter.mp4").write_bytes(b"no video")
    tab.choose("source-file")
    tab.page.set_input_files("#file", tmp_path / "letter.mp4")
    tab.warns("cannot play letter.mp4")
    tab.page.click("#dismiss")
    tab.page.set_input_files("#file", CLIP)
    tab.says("Ready")


def test_nothing_to_follow(tab):
    tab.says("Ready")
    tab.page.click("#clear")
    tab.until("!document.getElementById('objects').children.length")
    tab.page.click("#start")
    tab.says("Type what to follow")
    assert tab.page.evaluate("document.activeElement.id") == "words"


def test_a_busy_server(open_tab, engine):
    host = Running(engine, max_streams=1)
    try:
        first, second = open_tab(host), open_tab(host)
        first.choose("source-camera")
        first.page.fill("#words", "the crab in the video")
        first.page.click("#start")
        first.shows(1)
        second.page.click("#hero-start")
        second.warns("try again")
        first.page.click("#start")
        first.says("Stopped")
        second.page.click("#retry")
        second.says("Finished")
        assert len(second.page.evaluate("window.answers")) >= 10
    finally:
        host.close()


def test_a_server_that_goes_and_comes_back(open_tab, engine):
    host = Running(engine)
    try:
        tab = open_tab(host)
        tab.choose("source-camera")
        tab.page.fill("#words", "the crab in the video")
        tab.page.click("#start")
        tab.shows(1)
        host.close()
        tab.warns("Reconnect")
        tab.page.click("#retry")
        tab.warns("does not answer")
        host = Running(engine, port=host.port)
        shown = len(tab.page.evaluate("window.answers"))
        tab.page.click("#retry")
        tab.shows(shown + 8)
        assert not tab.page.locator("#banner").is_visible()
    finally:
        host.close()


def test_a_token(open_tab, engine):
    host = Running(engine, tokens=["correct horse"])
    try:
        tab = open_tab(host)
        is_asked = "document.getElementById('access').open"
        tab.until(is_asked)
        tab.page.fill("#token", "wrong horse")
        tab.page.keyboard.press("Enter")
        tab.until(f"{is_asked} && document.getElementById('access').textContent.includes('not accepted')")
        tab.page.fill("#token", "correct horse")
        tab.page.keyboard.press("Enter")
        tab.says("Ready")
        tab.page.click("#hero-start")
        tab.says("Finished")
        assert tab.page.evaluate("[localStorage.length, document.cookie, location.search]") == [0, "", ""]
        tab.page.evaluate("sessionStorage.setItem('token', 'wrong horse')")
        tab.page.click("#start")
        tab.until(is_asked)
        tab.page.fill("#token", "correct horse")
        tab.page.keyboard.press("Enter")
        tab.says("Following")
        tab.says("Finished")
    finally:
        host.close()
