"""The page to drive the dream on, in a real Chromium. The screenshots stay in data/screenshots: look at them."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from wm.dream.env import make_dream_env
from wm.driving.loading import load_acting
from wm.run.folder import Run
from wm.show.server import LocalServer
from wm.show.site import add_runtime, build_site
from wm.store.starts import load_starts
from wm.vision.vae import as_frames, load_vae

ROOT = Path(__file__).parent.parent
PRETRAINED = Run(ROOT / "data" / "pretrained")
SCREENSHOTS = ROOT / "data" / "screenshots"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
READING = "Multiple readback operations using getImageData"
"""What the console warns of since these tests look at the picture."""
PATIENCE = 120_000  # milliseconds; busy machines take their time

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or shutil.which("npm") is None, reason="needs a browser and npm: apt-get install chromium npm"
    ),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "play"
    build_site(PRETRAINED, folder)
    add_runtime(folder / "runtime")
    return folder


@pytest.fixture(scope="module")
def url(site: Path) -> Iterator[str]:
    with LocalServer(site, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


Open = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[Open]:
    """Opens the page; afterwards nothing may have been asked of anybody else, or complained about in the console."""
    complaints: list[str] = []
    contexts = []

    def opened(query: str = "", route: dict[str, Callable[[Route], None]] | None = None, **context: Any) -> Page:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **context}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: complaints.append(message.text) if READING not in message.text else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if not mine(asked.url) else None)
        for name, answer in (route or {}).items():
            page.route(f"**/{name}", answer)
        page.goto(url + query)
        return page

    def mine(asked: str) -> bool:
        return asked.startswith((url, "data:"))

    opened.complaints = complaints  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def ready(page: Page) -> Page:
    page.wait_for_selector("body[data-ready=true]")
    return page


def keep(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page="whole" in name)


def steps(page: Page) -> int:
    found = re.match(r"step (\d+) of 1000", page.inner_text("#count"))
    assert found is not None
    return int(found[1])


def wait_for(page: Page, element: str, pattern: str) -> None:
    """Waits for text in an element; Playwright's wait_for_function evaluates strings, which the page forbids."""
    expect(page.locator(f"#{element}")).to_have_text(re.compile(pattern), timeout=PATIENCE)


def wait_for_step(page: Page, number: int) -> None:
    deadline = time.monotonic() + PATIENCE / 1000
    while steps(page) < number:
        assert time.monotonic() < deadline, f"step {number} does not come"
        page.wait_for_timeout(20)


def take_steps(page: Page, count: int) -> None:
    """Single steps, each waited for."""
    for _ in range(count):
        before = steps(page)
        page.keyboard.press(".")
        wait_for_step(page, before + 1)


def picture(page: Page) -> NDArray[np.uint8]:
    """u8[64, 64, 3] as it stands on the canvas."""
    data = page.evaluate("[...document.getElementById('picture').getContext('2d').getImageData(0, 0, 64, 64).data]")
    return np.array(data, np.uint8).reshape(64, 64, 4)[..., :3]


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def amount(page: Page, pad: str) -> float:
    return float(page.evaluate(f"document.getElementById('pad-{pad}').style.getPropertyValue('--amount')"))


# --- what the browser computes ----------------------------------------------------------------------------


@torch.inference_mode()
def test_the_first_picture_is_vs_picture_of_the_start(open_page: Open) -> None:
    page = ready(open_page("?start=7&paused"))
    assert page.inner_text("#where") == "start 8 of 512"
    vae, _ = load_vae(PRETRAINED.vae)
    wanted = as_frames(vae.decode(torch.from_numpy(load_starts(PRETRAINED.starts).state["z"][7:8])))[0]
    assert np.abs(picture(page).astype(int) - wanted).max() <= 1


def test_the_browser_computes_what_python_does(open_page: Open, site: Path) -> None:
    """Two dreams side by side for 20 teacher-forced steps; z is random, h and c each keeps for itself."""
    rng = np.random.default_rng(0)
    given = [
        {
            "z": rng.standard_normal(64, np.float32),
            "a": rng.uniform(-1, 1, 6).astype(np.float32),
            "uniform": rng.random(32, np.float32),
            "noise": rng.standard_normal(32, np.float32),
        }
        for _ in range(20)
    ]
    page = ready(open_page("?paused"))
    found = page.evaluate(
        """async (given) => {
            const { World } = await import("./dream.js");
            const world = await World.load();
            const steps = [];
            let [h, c] = [new Float32Array(512), new Float32Array(512)];
            for (const one of given) {
                const { z, a, uniform, noise } = Object.fromEntries(
                    Object.entries(one).map(([name, values]) => [name, Float32Array.from(values)]));
                const next = await world.step({ z, h, c }, a, { uniform, noise }, 0.8);
                const actions = await world.act({ z, h });
                [h, c] = [next.next_h, next.next_c];
                steps.push({ ...next, actions, x: await world.decode(z) });
            }
            return steps.map((step) => Object.fromEntries(Object.entries(step).map(([n, v]) => [n, [...v]])));
        }""",
        [{name: values.tolist() for name, values in one.items()} for one in given],
    )
    sessions = {
        name: onnxruntime.InferenceSession(str(site / f"{name}.onnx")) for name in ("dream", "controller", "decoder")
    }
    h, c = np.zeros((2, 256), np.float32), np.zeros((2, 256), np.float32)
    for one, step in zip(given, found, strict=True):
        z = one["z"].reshape(2, 32)
        inputs = {"z": z, "h": h, "c": c, "a": one["a"].reshape(2, 3), "temperature": np.array([0.8], np.float32)}
        inputs |= {name: np.stack([one[name]] * 2) for name in ("uniform", "noise")}
        names = [output.name for output in sessions["dream"].get_outputs()]
        wanted = dict(zip(names, sessions["dream"].run(None, inputs), strict=True))
        wanted["actions"] = sessions["controller"].run(None, {"z": z, "h": h})[0]
        wanted["x"] = sessions["decoder"].run(None, {"z": z[:1]})[0]
        h, c = wanted["next_h"], wanted["next_c"]
        for name, values in wanted.items():
            np.testing.assert_allclose(step[name], values.ravel(), rtol=0, atol=1e-4, err_msg=name)


def test_random_numbers(open_page: Open) -> None:
    page = ready(open_page("?paused"))
    uniform, normal, again, other = page.evaluate(
        """async () => {
            const { Random } = await import("./random.js");
            const [one, two, three] = [new Random(5), new Random(5), new Random(6)];
            const many = (draw) => Array.from({ length: 50000 }, draw);
            const uniform = many(() => one.uniform());
            return [uniform, many(() => one.normal()), many(() => two.uniform()), many(() => three.uniform())];
        }"""
    )
    assert uniform == again
    assert abs(np.corrcoef(uniform, other)[0, 1]) < 0.02
    assert 0 <= min(uniform) < 0.001
    assert 0.999 < np.float32(max(uniform)) < 1
    np.testing.assert_allclose(np.histogram(uniform, 10, (0, 1))[0], 5000, atol=300)
    assert abs(np.corrcoef(uniform[1:], uniform[:-1])[0, 1]) < 0.02
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert np.mean(np.array(normal) ** power) == pytest.approx(moment, abs=0.12)


def test_keys_of_other_environments(open_page: Open) -> None:
    """Of several choices one is taken; a value moves in parts of its bounds; a pad says what it does."""
    page = ready(open_page("?paused"))
    found = page.evaluate(
        """async () => {
            const { Driver, amountOf, padName } = await import("./driver.js");
            const driven = (about, press, steps = 1) => {
                const driver = new Driver(about, [], document.createElement("i"), () => {});
                press(driver);
                let action;
                for (let i = 0; i < steps; i++) action = driver.act();
                return [...action];
            };
            const choices = {
                actions: { names: ["stay", "hit", "rise"], low: [], high: [], discrete: true },
                keys: { left: [0, 1, 0], up: [0, 0, 1] },
            };
            const wide = {
                actions: { names: ["turn"], low: [-2], high: [1], discrete: false },
                keys: { left: [-2], right: [2] },
            };
            const hold = (name) => (driver) => driver.held.set("it", name);
            const touch = (x, y) => (driver) => (driver.touch = { x, y });
            return {
                choices: [() => 0, hold("left"), hold("up"), touch(0.5, 0.2), touch(0.1, 0.2), touch(0.5, 0.9)].map(
                    (press) => driven(choices, press)),
                wide: [driven(wide, hold("left"), 5), driven(wide, hold("left"), 20), driven(wide, hold("right"), 20)],
                names: [padName(choices, "left"), padName(wide, "left")],
                amounts: [amountOf(choices, "up", [0, 0, 1]), ...["left", "right"].map((k) => amountOf(wide, k, [-1]))],
            };
        }"""
    )
    assert found["choices"] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert [round(value, 6) for (value,) in found["wide"]] == [-1, -2, 1]
    assert found["names"] == ["hit", "left"]
    assert found["amounts"] == [1, 0.5, 0]


# --- what can be seen and done ----------------------------------------------------------------------------


def on_the_road(steps: int) -> int:
    """The start, of the first dozen, from which the controller's dream earns the most: some begin in the grass."""
    models, theta = load_acting(PRETRAINED)
    controller = models.layout.controller(theta, models.features)

    def earned(start: int) -> float:
        env = make_dream_env(PRETRAINED.folder, start=start)
        observation, _ = env.reset(seed=0)
        score = 0.0
        for _ in range(steps):
            observation, reward, *_ = env.step(models.task.action.squash(controller(observation)))
            score += float(reward)
        return score

    return max(range(12), key=earned)


def test_the_controller_drives_at_first_and_the_page_says_what_to_do(open_page: Open) -> None:
    page = ready(open_page(f"?start={on_the_road(60)}&seed=1"))
    assert page.inner_text("#say") == "The controller drives. Take the wheel: arrow keys or W A S D."
    first = picture(page)
    wait_for_step(page, 60)
    assert apart(picture(page), first) > 3
    assert page.inner_text("#score-you") == "–"
    assert float(page.inner_text("#score-controller").replace("−", "-")) > 0  # it rolls over some road
    wait_for(page, "rate", r"^[1-9]\d* steps/s$")
    assert max(amount(page, pad) for pad in ("left", "right", "up", "down")) > 0
    keep(page, "desktop")
    keep(page, "desktop-whole")


def test_it_runs_at_real_speed_and_not_faster(open_page: Open) -> None:
    """Busy machines are slower, and say so; none is faster than 50 steps a second."""
    page = ready(open_page("?start=3&seed=1"))
    wait_for_step(page, 20)
    before, since = steps(page), time.monotonic()
    page.wait_for_timeout(3000)
    taken, seconds = steps(page) - before, time.monotonic() - since
    assert 0 < taken <= 50 * seconds + 10
    shown = int(page.inner_text("#rate").removesuffix(" steps/s"))
    assert 0 < shown <= 60


def test_dreams_are_repeated_step_by_step(open_page: Open) -> None:
    """The same start with the same random numbers is the same dream; with others it is another one."""
    found = []
    for query in ("?start=3&seed=1&paused", "?start=3&seed=1&paused", "?start=3&seed=2&paused"):
        page = ready(open_page(query))
        take_steps(page, 25)
        assert steps(page) == 25
        found.append((picture(page), page.inner_text("#score-controller"), page.inner_text("#reward-now")))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    assert apart(found[0][0], found[2][0]) > 0


def test_driving_changes_the_picture_and_the_controller_is_scored_beside(open_page: Open) -> None:
    page = ready(open_page("?start=3&seed=1"))
    page.keyboard.press("ArrowUp")
    assert page.wait_for_selector("body[data-driver=you]")
    wait_for(page, "say", r"^You drive\. C hands back to the controller\.$")
    page.keyboard.press("p")
    page.wait_for_selector("body[data-paused=true]")
    found = {}
    for key in ("ArrowLeft", "d"):
        page.keyboard.press("r")
        wait_for(page, "count", "^step 0 ")
        page.keyboard.down(key)
        take_steps(page, 40)
        pad = "left" if key == "ArrowLeft" else "right"
        assert amount(page, pad) == 1
        page.keyboard.up(key)
        assert page.get_attribute("body", "data-driver") == "you"
        found[pad] = (picture(page), page.inner_text("#score-controller"), page.inner_text("#score-you"))
        keep(page, f"desktop-{pad}")
    assert apart(found["left"][0], found["right"][0]) > 3
    assert found["left"][1] == found["right"][1]  # it has been driving its own dream, with the same random numbers
    page.keyboard.press("c")
    assert page.wait_for_selector("body[data-driver=controller]")
    before = steps(page)
    page.keyboard.press("p")
    wait_for_step(page, before + 20)
    assert page.inner_text("#score-you") != "–"


def test_pause_step_and_other_starts(open_page: Open) -> None:
    page = ready(open_page("?start=3"))
    wait_for_step(page, 5)
    page.click("#pause")
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#rate")).to_have_text("paused")
    before = steps(page)
    page.wait_for_timeout(500)
    assert steps(page) == before
    page.click("#step")
    wait_for_step(page, before + 1)
    page.wait_for_timeout(300)
    assert steps(page) == before + 1
    starts = set()
    for _ in range(4):
        page.click("#another")
        wait_for(page, "count", "^step 0 ")
        starts.add(page.inner_text("#where"))
        take_steps(page, 1)
    assert len(starts) > 1
    page.keyboard.press("Space")  # the focus is on a button, which a space presses: another start, still paused
    assert page.get_attribute("body", "data-paused") == "true"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    page.wait_for_selector("body[data-paused=false]")


def test_temperature(open_page: Open) -> None:
    """Cold dreams of one start are alike whatever their random numbers; hot ones are not."""

    def spread(temperature: str) -> float:
        pictures = []
        for seed in (1, 2):
            page = ready(open_page(f"?start=3&seed={seed}&paused"))
            page.fill("#temperature", temperature)
            assert page.inner_text("#tau") == f"{float(temperature):.2f}"
            take_steps(page, 15)
            pictures.append(picture(page))
        keep(page, f"temperature-{temperature}")
        return apart(*pictures)

    assert spread("0.1") * 1.5 < spread("2")


def test_arrows_on_the_slider_move_the_slider(open_page: Open) -> None:
    page = ready(open_page("?paused"))
    page.focus("#temperature")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#tau") == "1.05"
    assert page.get_attribute("body", "data-driver") == "controller"


def test_a_phone(open_page: Open) -> None:
    page = ready(
        open_page(
            "?start=5",
            viewport={"width": 360, "height": 740},
            device_scale_factor=2,
            is_mobile=True,
            has_touch=True,
            color_scheme="dark",
        )
    )
    assert page.inner_text("#say") == "The controller drives. Take the wheel: touch the picture or the pads."
    wait_for_step(page, 30)
    keep(page, "phone")
    keep(page, "phone-whole")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for button in page.locator("button").all():
        box = button.bounding_box()
        assert box is not None
        assert min(box["height"], box["width"]) >= 44
    for pad in page.locator(".pad").all():
        box = pad.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 740  # in reach without scrolling
    page.touchscreen.tap(180, 300)
    page.wait_for_selector("body[data-driver=you]")
    page.tap("#hand")
    page.wait_for_selector("body[data-driver=controller]")
    page.tap("#pad-up")
    page.wait_for_selector("body[data-driver=you]")


@pytest.mark.parametrize(("width", "height"), [(568, 320), (740, 360), (932, 430)])
def test_a_phone_on_its_side(open_page: Open, width: int, height: int) -> None:
    """All that drives is in reach without scrolling, and nothing covers anything else."""
    page = ready(
        open_page("?start=5&paused", viewport={"width": width, "height": height}, is_mobile=True, has_touch=True)
    )
    keep(page, f"phone-{width}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [each.bounding_box() for each in page.locator("button, #picture").all()]
    boxes += [page.locator(name).bounding_box() for name in (".scores", ".rate", "#say")]
    found = [(box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]) for box in boxes if box]
    assert len(found) == 13
    assert max(bottom for *_, bottom in found) <= height
    assert all(min(right - left, bottom - top) >= 44 for left, top, right, bottom in found[1:10])
    for group in (found[:10], found[10:]):  # the picture and the buttons; what lies on the picture
        for one, other in combinations(group, 2):
            apart = max(one[0] - other[2], other[0] - one[2], one[1] - other[3], other[1] - one[3])
            assert apart >= 0, (one, other)
    for button in page.locator("button").all():
        assert button.evaluate("e => e.scrollWidth <= e.clientWidth")  # its text fits


def test_reduced_motion_begins_paused(open_page: Open) -> None:
    page = ready(open_page("?start=5", reduced_motion="reduce"))
    assert page.get_attribute("body", "data-paused") == "true"
    assert page.inner_text("#say").startswith("Paused.")


def test_everything_has_a_name(open_page: Open) -> None:
    page = ready(open_page("?paused"))
    for part in ("button", "input", "canvas", "section"):
        for each in page.locator(part).all():
            assert each.evaluate(
                "e => !!(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.getAttribute('aria-labelledby'))"
            )
    assert page.locator("#say[role=status]").count() == 1
    assert page.locator("h1").count() == 1


def test_any_static_host_will_do_at_any_path(browser: Browser, site: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(site.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://127.0.0.1:{server.server_port}/play/?start=7")
        wait_for_step(ready(page), 3)
        page.close()
        server.shutdown()


# --- ends and errors --------------------------------------------------------------------------------------


def with_world(**changes: Any) -> dict[str, Callable[[Route], None]]:
    def answer(route: Route) -> None:
        world = json.loads(route.fetch().text())
        route.fulfill(json={**world, **changes})

    return {"world.json": answer}


def test_the_end(open_page: Open) -> None:
    page = ready(open_page("?start=3&seed=1&paused", route=with_world(horizon=6)))
    page.keyboard.press("w")
    page.wait_for_selector("body[data-driver=you]")
    wait_for(page, "say", "^The dream is over")
    assert re.fullmatch(
        r"The dream is over: 6 steps are up\. You −?\d+, controller −?\d+\. R: again\. N: new start\.",
        page.inner_text("#say").replace("\u00a0", " "),
    )
    keep(page, "over")
    page.keyboard.press("n")
    expect(page.locator("#where")).not_to_have_text("start 4 of 512", timeout=PATIENCE)


def test_the_controllers_own_dreams_follow_one_another(open_page: Open) -> None:
    page = ready(open_page("?start=3&seed=1", route=with_world(horizon=6)))
    expect(page.locator("#where")).not_to_have_text("start 4 of 512", timeout=PATIENCE)


def test_a_dream_that_m_ends(open_page: Open) -> None:
    """With the worst random numbers the first step is the last, and pays what an end pays."""
    page = ready(open_page("?start=3&paused"))
    ended = page.evaluate(
        """async () => {
            const { Dream, World } = await import("./dream.js");
            const dream = new Dream(await World.load());
            await dream.begin(3, 0);
            dream.random.uniform = () => 0;
            dream.fork();
            await dream.step([0, 1, 0], 1);
            return [dream.over, dream.score, dream.controllerRun.score, dream.controllerRun.over, dream.state.z.length];
        }"""
    )
    end = float(load_starts(PRETRAINED.starts).rewards[2])
    assert ended == ["terminated", end, end, True, 32]


def test_what_is_missing_is_named(open_page: Open) -> None:
    page = open_page(route={"dream.onnx": lambda route: route.fulfill(status=404)})
    wait_for(page, "say", "^The dream cannot run here")
    assert page.inner_text("#say") == "The dream cannot run here: dream.onnx is missing beside the page (404)."
    said = open_page.complaints  # type: ignore[attr-defined]
    assert any("dream.onnx is missing" in line for line in said)
    said.clear()
