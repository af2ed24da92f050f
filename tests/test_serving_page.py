"""The page in a real browser: a scan dropped, answered, overlaid, downloaded, and equal to what `predict` writes."""

# ruff: noqa: E402  # what is imported below needs what may be missing
from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

from samadapt.serving.pages import PAGES
from serving import running
from test_serving import SECRET, classifies, models, picture, predicted, scan, segments  # noqa: F401  # fixtures

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *(
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    ),  # WebGL2 without a graphics card
]
DROP = """([content, name]) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
  return files;
}"""


def text_of(path: str) -> str:
    return next(page for page in PAGES if page.path == path).file.read_text()


def test_the_viewer_is_the_published_one():
    packed = next(page for page in PAGES if page.path == "/niivue.js").file.read_bytes()
    digest = hashlib.sha256(gzip.decompress(packed)).hexdigest()
    assert digest in text_of("/niivue.txt") and "BSD 2-Clause" in text_of("/niivue.txt")


def test_the_page_asks_nobody_else_and_has_no_script_or_style_in_it():
    for path in ("/", "/page.js", "/page.css"):
        assert not re.search(r"(https?:)?//[a-z]+\.", text_of(path)), path
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", text_of("/"))
    assert not re.search(r"innerHTML|insertAdjacentHTML|eval\(", text_of("/page.js"))


def test_every_field_has_a_label_and_every_id_of_the_script_is_there():
    html = text_of("/")
    ids = set(re.findall(r'id="([\w-]+)"', html))
    assert set(re.findall(r'\$\("([\w-]+)"\)', text_of("/page.js"))) <= ids
    for kind, name in re.findall(r'<(input|select)[^>]*id="(\w+)"', html):
        assert f'for="{name}"' in html or re.search(rf'<label[^>]*>[^<]*<{kind}[^>]*id="{name}"', html), name
    assert 'role="status" aria-live="polite"' in html and 'role="alert"' in html


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, models):  # noqa: F811
    with running(models, token=SECRET) as found:
        opened = browser.new_page(viewport={"width": 1300, "height": 900})
        opened.wrong = []
        opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
        opened.on("requestfailed", lambda request: opened.wrong.append(request.url))
        opened.on("request", lambda r: None if f":{found.port}/" in r.url or r.url.startswith(("blob:", "data:")) else opened.wrong.append(r.url))  # fmt: skip
        opened.goto(f"http://127.0.0.1:{found.port}/")
        opened.wait_for_selector("#locked:not([hidden])")
        opened.keyboard.type(SECRET)  # the field has the focus
        opened.keyboard.press("Enter")
        opened.wait_for_selector("#model option", state="attached")
        yield opened
        assert opened.wrong == []
        opened.close()


def ask(page, model: str, name: str, content: bytes) -> None:
    page.select_option("#model", model)
    files = page.evaluate_handle(DROP, [base64.b64encode(content).decode(), name])
    page.dispatch_event("#drop", "drop", {"dataTransfer": files})
    page.locator("#send:not([disabled])").press("Enter")
    for _ in range(300):
        page.wait_for_timeout(100)
        if re.search(r"Answered|No answer\.", page.inner_text("#status")):
            return
    raise AssertionError(f"no answer: {page.inner_text('body')}")


def coloured(page, path: Path) -> int:
    """Pixels of the stage that are not grey."""
    page.locator("#stage").screenshot(path=path)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=-1) > 30).sum())


@pytest.mark.slow
def test_a_volume_is_answered_overlaid_and_downloaded(page, scan, predicted, tmp_path):  # noqa: F811
    ask(page, "heart", scan.name, scan.read_bytes())
    assert page.inner_text("#error") == ""
    assert page.inner_text("#status").startswith("Answered in")
    page.wait_for_timeout(500)
    shown = coloured(page, tmp_path / "overlay.png")
    page.locator("#opacity").fill("0")
    page.wait_for_timeout(300)
    assert shown > 200 and coloured(page, tmp_path / "without.png") < shown / 4
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "down.nii.gz")
    assert (tmp_path / "down.nii.gz").read_bytes() == predicted.read_bytes()
    assert download.value.suggested_filename.endswith("_heart.nii.gz")
    before = page.inner_text("#slice-number")
    page.locator("#slice").press("ArrowRight")
    assert page.inner_text("#slice-number") != before
    rows = page.locator("#tables tbody tr").all_inner_texts()
    assert len(rows) == 3 and all(re.search(r"\d\.\d$", row) for row in rows)


@pytest.mark.slow
def test_a_picture_is_classified_and_the_page_says_where_it_looked(page):
    name, content = picture(1)
    ask(page, "photos", name, content)
    assert len(page.locator("#tables tbody tr").all()) == 2
    assert page.locator("#looked").evaluate("image => image.naturalWidth") > 100
    assert page.locator("#looked").get_attribute("alt")


@pytest.mark.slow
def test_what_was_begun_for_an_earlier_scan_is_drawn_no_more(page):
    page.evaluate("""() => {
      const real = window.createImageBitmap;
      const first = new Promise((go) => { window.goOn = go; });
      window.createImageBitmap = async (blob) => { window.createImageBitmap = real; await first; return real(blob); };
    }""")
    for seed, size in ((0, 28), (1, 40)):
        name, content = picture(seed, size)
        files = page.evaluate_handle(DROP, [base64.b64encode(content).decode(), name])
        page.dispatch_event("#drop", "drop", {"dataTransfer": files})
    page.wait_for_function("() => document.getElementById('pixels').width === 40")
    page.evaluate("() => window.goOn()")
    page.wait_for_timeout(300)
    assert page.evaluate("() => document.getElementById('pixels').width") == 40
    assert page.inner_text("#status") == "photo1.png chosen."


@pytest.mark.slow
def test_an_answer_to_an_earlier_scan_is_said_no_more(page):
    def slow(route) -> None:
        answer = route.fetch()
        name, content = picture(1, 40)
        files = page.evaluate_handle(DROP, [base64.b64encode(content).decode(), name])
        page.dispatch_event("#drop", "drop", {"dataTransfer": files})
        with contextlib.suppress(Exception):  # the page waits for it no more
            route.fulfill(response=answer)

    page.route("**/predict*", slow)
    page.select_option("#model", "photos")
    name, content = picture(0)
    files = page.evaluate_handle(DROP, [base64.b64encode(content).decode(), name])
    page.dispatch_event("#drop", "drop", {"dataTransfer": files})
    page.locator("#send:not([disabled])").press("Enter")
    page.wait_for_function("() => document.getElementById('pixels').width === 40")
    page.wait_for_timeout(500)
    assert page.inner_text("#status") == "photo1.png chosen." and page.inner_text("#said") == "No answer yet."
    assert page.locator("#send:not([disabled])").count() == 1
    page.wrong.clear()  # the request that was aborted


@pytest.mark.slow
def test_what_cannot_be_read_is_said(page):
    ask(page, "heart", "a.nii.gz", b"rubbish")
    assert page.inner_text("#error").startswith("a.nii.gz cannot be read")
    assert page.inner_text("#status") == "No answer."


@pytest.mark.slow
def test_names_of_files_and_classes_are_text_and_no_markup(page):
    evil = "<img src=x onerror=document.title='run'>"

    def renamed(route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=re.sub(r'"(0|RV)"', f'"{evil}"', answer.text()))

    page.route("**/models", renamed)
    page.route("**/predict*output=json", renamed)
    page.dispatch_event("#unlock", "click")  # the models are asked for again
    page.wait_for_selector("#reads:text('<img')")
    ask(page, "photos", f"{evil}.png", picture(1)[1])
    assert evil in page.inner_text("#tables") and page.inner_text("#error") == ""
    ask(page, "heart", f"{evil}.nii.gz", b"rubbish")
    assert "cannot be read" in page.inner_text("#error")
    assert page.title() == "samadapt" and page.locator("img[src=x]").count() == 0


@pytest.mark.slow
def test_the_description_for_programs_is_downloaded_with_the_token(page):
    with page.expect_download() as download:
        page.click("#openapi")
    assert '"/predict"' in Path(download.value.path()).read_text()
