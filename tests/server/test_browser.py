"""Pages in a real browser: nothing on the console, nothing off the machine, at both widths, light and dark, by keyboard, against hostile text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Browser
from sqlalchemy import update

from autointerp.pipeline.exporting import export_run
from autointerp.pipeline.folder import RunFolder
from autointerp.store.models import ExplanationRow, LabelRow
from tests.autointerp.export_world import open_world
from tests.server.browser import CONTRAST, Watched, open_browser, serving
from tests.server.served_world import RUN_ID, SOURCE

RUN = f"/runs/{RUN_ID}"
PAGES = {
    "runs": "/",
    "run": RUN,
    "table": f"{RUN}/latents?sort=f1&descending=true",
    "none found": f"{RUN}/latents?words=nothingofthekind",
    "latent": f"{RUN}/latents/{SOURCE}/5",
    "dead latent": f"{RUN}/latents/{SOURCE}/0",
    "failed latent": f"{RUN}/latents/{SOURCE}/2",
    "search": f"{RUN}/search",
    "downloads": f"{RUN}/downloads",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def site(served_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of a copy of the run."""
    home = tmp_path_factory.mktemp("site") / "runs"
    shutil.copytree(served_run, home / "world")
    with serving(home) as address:
        yield address


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_and_can_be_read(browser: Browser, site: str, width: int, scheme: str) -> None:
    watched = Watched(browser, site, viewport={"width": width, "height": 850}, color_scheme=scheme)
    for name, path in PAGES.items():
        page = watched.go(path)
        assert page.locator("h1").count() == 1, name
        assert watched.sideways() <= 0, name
        assert page.evaluate(CONTRAST) == [], name
    watched.expected_statuses.add(404)
    watched.go("/runs/none")
    assert page.locator("h1").inner_text() == "Not here"
    assert page.evaluate(CONTRAST) == []
    watched.close()


def test_a_reader_gets_everywhere_by_keyboard(browser: Browser, site: str) -> None:
    watched = Watched(browser, site)
    page = watched.go("/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.get_by_role("link", name="world").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**" + RUN)
    page.get_by_role("link", name="Browse the latents").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/latents")
    page.keyboard.press("/")
    page.keyboard.type("number 123")
    page.keyboard.press("Enter")
    page.wait_for_url("**words=number**")
    assert page.locator("tbody tr").count() == 1
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/123")
    page.keyboard.press("j")
    page.wait_for_url("**/124")
    page.keyboard.press("k")
    page.wait_for_url("**/123")
    page.keyboard.press("e")
    assert page.evaluate("document.activeElement.name") == "text"
    # whatever has the focus shows it
    for _ in range(12):
        page.keyboard.press("Tab")
        outline = (
            "[document.activeElement.outerHTML.slice(0, 80), getComputedStyle(document.activeElement).outlineStyle]"
        )
        name, style = page.evaluate(outline)
        assert style != "none" or name.startswith("<body"), name
    watched.close()


def test_a_corrected_label_comes_home(browser: Browser, site: str, tmp_path: Path) -> None:
    """Found by its words, edited, seen in the table, exported anew, downloaded."""
    watched = Watched(browser, site, accept_downloads=True)
    page = watched.go(f"{RUN}/latents?words=number+47")
    page.get_by_role("link", name="47", exact=True).click()
    page.get_by_text("Review this label").click()
    page.get_by_label("Label").fill("the 47th word")
    page.get_by_label("Your name").fill("ann")
    page.get_by_role("button", name="Save this text").click()
    page.wait_for_load_state("networkidle")
    assert page.locator("h1").inner_text() == "the 47th word"
    assert "ann: edit" in page.locator(".history").inner_text()
    page = watched.go(f"{RUN}/latents?where=fire_count%3E%3D0&words=number+47")
    assert "edited by ann" in page.locator("tbody").inner_text()
    page = watched.go(f"{RUN}/downloads")
    page.get_by_role("button", name="Make it anew").click()
    page.wait_for_load_state("networkidle")
    for _ in range(60):
        if "every review is in it" in page.locator("main").inner_text():
            break
        page.wait_for_timeout(500)
        page.goto(site + f"{RUN}/downloads")
    with page.expect_download() as started:
        page.locator("a[download]", has_text="parquet").first.click()
    started.value.save_as(tmp_path / "labels.parquet")
    table = pd.read_parquet(tmp_path / "labels.parquet")
    assert table[table.latent == 47].label.tolist() == ["the 47th word"]
    page = watched.go(f"{RUN}/latents?words=47th")
    assert page.locator("tbody tr").count() == 1
    watched.close()


HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</title></textarea></style></noscript><img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)>",
    "' autofocus onfocus=alert(1) x='",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "javascript:alert(1)",
    "<a href=javascript:alert(1)>x</a>",
    "<img src=https://evil.example/x.png>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><button>x</button></form>",
    "{{ 7 * 7 }} {% include 'base.html' %} ${7*7} #{7*7}",
    "<a<b>c><script>alert(1)//</script>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "\u202etxt.exe\u202c \u200b\u2066hidden\u2069 \ufeff",
    "\u2028\u2029line ends",
    "%3Cscript%3Ealert(1)%3C/script%3E &lt;b&gt; &#x3C;i&#x3E;",
    "=HYPERLINK(\"//evil.example\")",
)  # fmt: skip


def test_hostile_text_is_shown_as_it_is(browser: Browser, served_run: Path, tmp_path: Path) -> None:
    """In labels of both kinds, reasons, candidates, notes, names of reviewers and of the run, and searched for."""
    own = shutil.copytree(served_run, tmp_path / "runs" / "hostile")
    context = open_world(own)
    with context.store.writing() as connection:
        for latent, text in enumerate(HOSTILE, start=100):
            where = (LabelRow.run_id == RUN_ID, LabelRow.latent == latent)
            connection.execute(
                update(LabelRow).where(*where).values(status="labelled", text=text, text_output=text, failure_kind=None)
            )
            connection.execute(update(LabelRow).where(LabelRow.latent == latent + 100).values(failure_message=text))
            connection.execute(
                update(ExplanationRow)
                .where(ExplanationRow.latent == latent, ExplanationRow.text != "")
                .values(text=text)
            )
    export_run(context, RunFolder(own).dictionary)
    context.store.close()
    table = pd.read_parquet(own / "dictionary").set_index("latent")
    with serving(own.parent) as address:
        watched = Watched(browser, address)
        for latent, text in enumerate(HOSTILE, start=100):
            assert table.label[latent] == text  # exports carry it whole
            page = watched.go(f"{RUN}/latents/{SOURCE}/{latent}", until_quiet=False)
            shown = page.locator("h1").inner_text()
            for hidden in "\u202e\u202c\u200b\u2066\u2069\ufeff\u2028\u2029":
                assert hidden not in page.content()
            if text.isascii():
                assert " ".join(shown.split()) == " ".join(text.split())
            page.get_by_text("Review this label").click()
            page.get_by_label("Label").fill(text)
            page.get_by_label("Your name").fill(text[:60])
            page.get_by_label("Why").fill(text)
            page.get_by_role("button", name="Save this text").click()
            page.wait_for_load_state("load")
        watched.go(f"{RUN}/latents?limit=200&where=fire_rate%3E%3D0")
        watched.go(RUN)
        page.wait_for_timeout(500)
        watched.expected_statuses |= {400, 404, 422}
        from urllib.parse import quote

        for text in HOSTILE:
            for param in ("words", "sort", "where", "source", "status", "after"):
                watched.go(f"{RUN}/latents?{param}={quote(text)}", until_quiet=False)
            watched.go(f"/runs/{quote(text[:20], safe='')}", until_quiet=False)
            watched.go(f"{RUN}/latents/{quote(text, safe='')}/1", until_quiet=False)
        watched.close()
