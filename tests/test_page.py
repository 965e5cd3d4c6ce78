"""report.html in headless Chromium: it moves, follows the theme, fits a phone, and what users wrote stays text."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import bigjko as bj
from bigjko.neurons.base import Neurons
from bigjko.show import page
from bigjko.show.marginals import measure_blocks
from bigjko.show.panels import Block

pytestmark = [
    pytest.mark.filterwarnings("ignore::bigjko.NarrowMeasureWarning"),
    pytest.mark.filterwarnings("ignore::bigjko.BoundaryMassWarning"),
]

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
# Of every way to draw a measure one: data, way, nodes, and how many charts move with the slider.
PLANE = [[1.0, 0.2], [-0.4, 0.9], [0.3, -0.8]]
CASES: dict[str, tuple[list[list[float]], Neurons, int, int]] = {
    "circle": (PLANE, bj.neurons.Projected(), 96, 4),
    "sphere": ([[1.0, 0.2, 0.3], [-0.4, 0.9, -0.5], [0.3, -0.8, 0.6]], bj.neurons.Projected(), 60, 5),
    "box": ([[-1.5], [0.7], [1.2]], bj.neurons.Lifted(), 31, 5),
}


def made(name: str) -> str:
    """The page of a short run."""
    rows, way, nodes, _ = CASES[name]
    X, y = torch.tensor(rows).double(), torch.tensor([0.8, -0.4, 0.5]).double()
    risk = bj.Risk(X, y, way, bj.losses.Squared(1 / 3))
    grid = way.grid(nodes, X.shape[1])
    if isinstance(way, bj.neurons.Projected):
        start = way.uniform(grid, radius=0.7)
    else:
        start = bj.GridMeasure.gaussian(grid, 0.0, 0.6)
    jko = bj.evolve(bj.JKO(risk, grid, tau=0.1), start, t_end=0.5, save_at=(0.0, 0.2, 0.5))
    gd = bj.evolve(bj.GradientDescent(risk, 0.05), way.particles(start), t_end=0.5, save_at=(0.0, 0.2, 0.5))
    config = f"# {HOSTILE}\nname = '{name}'"
    held = bj.compare(jko, gd, transport=False)
    return page(
        held, risk, title=HOSTILE, verdict=HOSTILE, facts=[(HOSTILE, HOSTILE)], config=config, versions={HOSTILE: 1}
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    chromium, driver = next(filter(None, found), None), shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "no Chromium or no chromedriver: apt-get install chromium chromium-driver"
        if os.environ.get("BIGJKO_BROWSER_REQUIRED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for option in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


def look(browser: webdriver.Chrome, width: int, theme: str) -> None:
    """A window of this width in the theme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": theme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def wait(browser: webdriver.Chrome, script: str) -> Any:
    return WebDriverWait(browser, 60).until(lambda seen: seen.execute_script(f"return {script}"))


def drawn(browser: webdriver.Chrome) -> str:
    """All the data that the charts show, lines and maps."""
    script = "[...document.querySelectorAll('.plot')].map(p => p.data.map(t => [t.y, t.z, t.line?.color]))"
    return json.dumps(browser.execute_script(f"return {script}"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_page_moves_follows_the_theme_and_fits_a_phone(name: str, browser: webdriver.Chrome, tmp_path: Path) -> None:
    text = made(name)
    assert len(text.encode()) < 8e6
    (tmp_path / "report.html").write_text(text, "utf-8")
    browser.get_log("performance")  # empties it
    look(browser, 1280, "light")
    browser.get((tmp_path / "report.html").as_uri())
    charts = int(wait(browser, "document.body.dataset.drawn"))
    assert charts == len(browser.find_elements(By.CSS_SELECTOR, ".plot .main-svg:first-child"))
    # Risk of both flows, every output of both, and the gap.
    for chart, curves in enumerate((2, 6, 2)):
        assert len(browser.find_elements(By.CSS_SELECTOR, f"#chart-{chart} .scatterlayer path.js-line")) == curves

    # The slider, by its keys.
    assert browser.find_element(By.ID, "shown").text == "t = 0.5"
    last = drawn(browser)
    browser.find_element(By.ID, "time").send_keys(Keys.ARROW_LEFT)
    assert browser.find_element(By.ID, "shown").text == "t = 0.2"
    WebDriverWait(browser, 60).until(lambda seen: drawn(seen) != last)
    moved = [one != two for one, two in zip(json.loads(last), json.loads(drawn(browser)), strict=True)]
    assert sum(moved) == CASES[name][3]

    # Dark ground, and the charts' colours with it.
    ground = "getComputedStyle(document.body).backgroundColor"
    light, before = browser.execute_script(f"return {ground}"), drawn(browser)
    look(browser, 1280, "dark")
    assert browser.execute_script(f"return {ground}") != light
    WebDriverWait(browser, 60).until(lambda seen: drawn(seen) != before)

    look(browser, 390, "dark")
    wait(browser, "document.querySelector('.plot .main-svg').getBoundingClientRect().width < 390")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390

    # What users wrote is text; nothing was said on the console, and nothing asked of a network.
    assert browser.title.startswith(HOSTILE)
    for where in ("h1", ".verdict", "th", "td", "pre"):
        assert HOSTILE in str(browser.find_element(By.CSS_SELECTOR, where).get_property("textContent"))
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert browser.get_log("browser") == []
    said = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [one["params"]["request"]["url"] for one in said if one["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert [url for url in asked if url.startswith("file:")] == [(tmp_path / "report.html").as_uri()]


WAYS: list[Any] = [  # way, dimension of the data, nodes
    (bj.neurons.Lifted(), 2, 21),
    (bj.neurons.Signed(), 2, 41),
    (bj.neurons.PolarCone(), 2, 48),
    (bj.neurons.PolarFlat(), 2, 48),
    (bj.neurons.Projected(), 2, 600),
    (bj.neurons.Projected(balanced=False), 1, 64),
    (bj.neurons.Projected(), 3, 400),
    pytest.param(bj.neurons.Projected(), 4, 200, marks=pytest.mark.slow),
    (bj.neurons.Split(), 2, 41),
    (bj.neurons.Pairs(), 1, 21),
]


@pytest.mark.parametrize(("way", "dim", "nodes"), WAYS, ids=lambda value: str(value))
def test_a_measure_and_its_own_particles_look_alike_and_keep_their_mass(way: Neurons, dim: int, nodes: int) -> None:
    grid = way.grid(nodes, dim)
    W, a = torch.randn(40, dim).double() * 0.4, torch.randn(40).double() * 0.4
    known = bj.ParticleMeasure.from_network(W, a).balanced()
    start = way.measure(grid, known.w, known.a)
    X = torch.randn(20, dim).double()
    blocks = measure_blocks(way, X, [(start, way.particles(start)), (start, None)], ("JKO", "GD"))
    assert blocks
    total = sum(_masses(block) for block in blocks)
    expected = sum(float(masses.sum()) for _, masses in way.clouds(start).values())
    assert total == pytest.approx(expected, rel=0.02)


def _masses(block: Block) -> float:
    """What the first curve, or the first map of a sphere, holds; the second flow must hold the same at every place."""
    if block.title.startswith("Pairs"):
        return 0.0
    if block.title.startswith("Directions"):
        one, two = (torch.tensor([[x or 0.0 for x in row] for row in p.frames[0][0]["z"]]) for p in block.panels)
        top = float(block.panels[0].frames[0][0]["zmax"])
        torch.testing.assert_close(one, two, rtol=2e-2, atol=1e-3 * float(one.max()))
        assert all(x is None for row in block.panels[1].frames[1][0]["z"] for x in row)
        return (
            float(one.mean()) * top / 1000 * 16
        )  # the map's rectangle is 4 x 2, and twice the area of its ellipse's 4 pi
    total = 0.0
    for panel in block.panels if "sheet" in block.panels[0].title else block.panels[:1]:
        gd, jko = (torch.tensor(trace["y"]) for trace in panel.frames[0])
        torch.testing.assert_close(gd, jko, rtol=1e-2, atol=1e-3 * float(jko.max()))
        assert panel.frames[1][0]["y"] == [None] * len(jko)  # no particles were kept then
        total += float(torch.trapezoid(jko, torch.tensor(panel.data[0]["x"])))
    return total
