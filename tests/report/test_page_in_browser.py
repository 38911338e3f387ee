"""The page in a real browser: nothing is fetched, it fits a phone, it can be read in light and dark."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# Walks every text node that is shown and returns its WCAG contrast with the nearest filled background behind it.
CONTRAST = """() => {
  const rgb = text => { const m = text.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const f = c.slice(0, 3).map(v => linear(v / 255));
    return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
  const behind = node => { const layers = []; for (let e = node; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor); layers.push(c); if (c[3] === 1) break; }
    return layers.reverse().reduce((base, layer) => over(layer, base), [255, 255, 255, 1]); };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, parent = node.parentElement, box = parent.getBoundingClientRect();
    if (!node.data.trim() || !box.width || parent.closest('title, .picture') || !parent.checkVisibility()) continue;
    const style = getComputedStyle(parent), svg = parent.namespaceURI.endsWith('svg');
    if (parent.classList.contains('inside')) continue;
    const ink = over(rgb(svg ? style.fill : style.color), behind(parent)), paper = behind(parent);
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), node.data.trim().slice(0, 40)]);
  }
  return found;
}"""

# Elements that stick out to the right or left and are not inside a container that scrolls by itself.
OUTSIDE = """() => [...document.querySelectorAll('body *')]
  .filter(e => !e.closest('.scroll, .commands, .picture, title') && e.checkVisibility())
  .map(e => [e.getBoundingClientRect(), e.tagName + ' ' + e.getAttribute('class') + ' ' + e.textContent.slice(0, 30)])
  .filter(([box]) => box.width && (box.right > innerWidth + 0.5 || box.left < -0.5)).map(([, name]) => name)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("ACCLIMATE_CHROMIUM") or next((p for n in names if (p := shutil.which(n))), None)
    if found is None:
        pytest.skip("no Chromium found; install it (Debian: chromium) or name it in ACCLIMATE_CHROMIUM")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield started
        started.close()


class Visit:
    """A page opened offline; `requests` are the addresses it asked for, `messages` what the console said."""

    def __init__(self, browser: Any, file: Path, *, width: int = 1200, scheme: str = "light") -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        viewport = {"width": width, "height": 800}
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(file.resolve().as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def open_everything(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")


def test_nothing_is_fetched_and_the_console_is_silent(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file) as visit:
        visit.open_everything()
        visit.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        visit.page.wait_for_load_state("networkidle")
        outside = [url for url in visit.requests if not url.startswith("data:")]
        assert outside == [page_file.resolve().as_uri()]
        assert visit.messages == []


def test_the_check_for_requests_can_fail(browser: Any, page_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = page_file.read_text().replace('http-equiv="Content-Security-Policy"', "")
    broken.write_text(text.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    with Visit(browser, broken) as visit:
        assert any(url.startswith("http:") for url in visit.requests)
        assert visit.messages


@pytest.fixture(params=["page_file", "crowded_file"])
def any_file(request: pytest.FixtureRequest) -> Path:
    """Each of the two reports."""
    file: Path = request.getfixturevalue(request.param)
    return file


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_sticks_out_at_any_width(browser: Any, any_file: Path, width: int) -> None:
    with Visit(browser, any_file, width=width) as visit:
        visit.open_everything()
        assert visit.page.evaluate("document.scrollingElement.scrollWidth") <= width
        assert visit.page.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("width", [360, 1200])
def test_the_verdict_is_seen_first(browser: Any, page_file: Path, width: int) -> None:
    with Visit(browser, page_file, width=width) as visit:
        badge = visit.page.locator(".badge").bounding_box()
        lead = visit.page.locator(".lead").first.bounding_box()
        assert badge["y"] + badge["height"] < 300
        assert lead["y"] + lead["height"] < 800
        first = visit.page.evaluate("document.querySelector('main').firstElementChild.id")
        assert first == "verdict"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(browser: Any, any_file: Path, scheme: str) -> None:
    with Visit(browser, any_file, scheme=scheme) as visit:
        visit.open_everything()
        contrasts = visit.page.evaluate(CONTRAST)
        assert len(contrasts) > 200
        assert [item for item in contrasts if item[0] < 4.5] == []


def test_light_and_dark_differ(browser: Any, page_file: Path) -> None:
    paper = {}
    for scheme in ("light", "dark"):
        with Visit(browser, page_file, scheme=scheme) as visit:
            paper[scheme] = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(247, 247, 245)", "dark": "rgb(20, 23, 26)"}


def test_pictures_are_shown_in_both_columns_and_boxes_name_themselves(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file) as visit:
        # Before and after, and what is small in them once more, enlarged.
        pair = visit.page.locator(".pair").first
        assert pair.locator("svg.picture").count() in {2, 3}
        assert pair.locator(".outline title").first.text_content()
        # The second column shows the first one's image through <use>: its pixels are the picture, not the backdrop.
        shot = pair.locator("svg.picture").nth(1).screenshot()
        assert len(shot) > 2000


def test_every_picture_and_plot_has_a_description(browser: Any, page_file: Path) -> None:
    with Visit(browser, page_file) as visit:
        names = visit.page.evaluate(
            "[...document.querySelectorAll('svg[role=img]')].map(e => e.getAttribute('aria-label'))"
        )
        assert len(names) > 20
        assert all(len(name) > 15 for name in names)
        levels = visit.page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => Number(e.tagName[1]))")
        assert levels[0] == 1
        assert all(b - a <= 1 for a, b in itertools.pairwise(levels))


def test_it_prints_in_ink_on_white(browser: Any, page_file: Path, tmp_path: Path) -> None:
    with Visit(browser, page_file, scheme="dark") as visit:
        visit.page.emulate_media(media="print", color_scheme="dark")
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        assert min(visit.page.evaluate(CONTRAST))[0] >= 4.5
