"""A real browser that looks at a real server, and what it must never see."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[2]
_HOW = ["--no-sandbox", "--disable-dev-shm-usage"]


def chromium() -> str:
    """The system's browser. Without one its tests are skipped, and fail where REQUIRE_CHROMIUM is set, as CI sets it."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        missing = "no Chromium is on the PATH: apt-get install --no-install-recommends chromium"
        assert not os.environ.get("REQUIRE_CHROMIUM"), missing
        pytest.skip(missing)
    return found


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=_HOW)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, and everything about it that should not be: messages, errors, dialogs, requests to elsewhere."""

    def __init__(self, browser: Browser, base: str, **context: Any) -> None:
        self.base = base
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.expected_statuses: set[int] = set()
        self.page.on("console", lambda message: self._console(message.type, message.text))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self._request(request.url))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('policy ' + e.violatedDirective + ' ' + e.blockedURI))"
        )

    def _console(self, kind: str, text: str) -> None:
        found = re.search(r"status of (\d+)", text)
        if kind in ("error", "warning") and not (found and int(found[1]) in self.expected_statuses):
            self.wrong.append(f"{kind}: {text}")

    def _request(self, url: str) -> None:
        if not url.startswith((self.base, "data:", "blob:")):
            self.wrong.append(f"request: {url}")

    def go(self, path: str, *, until_quiet: bool = True) -> Page:
        """Open a page and wait until half a second has gone without a request, or only until it is loaded."""
        self.page.goto(self.base + path)
        if until_quiet:
            self.page.wait_for_load_state("networkidle")
        return self.page

    def sideways(self) -> int:
        """Pixels by which the page is wider than its window."""
        found: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return found

    def close(self) -> None:
        """Close it, and hold it to what it saw."""
        self.context.close()
        assert self.wrong == []


@contextmanager
def serving(home: Path, *arguments: str, log: Path | None = None, env: dict[str, str] | None = None) -> Iterator[str]:
    """``autointerp serve`` as a process of its own on a free port; its address."""
    command = [sys.executable, "-m", "autointerp.cli", "serve", *arguments, "--home", str(home), "--port", "0"]
    log = log or home.parent / f"{home.name}-serve.log"
    with log.open("w") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=env)
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://\S+?(?=/ )", line)
        assert found, f"{line}\n{log.read_text()}"
        try:
            yield found[0]
        finally:
            server.terminate()
            server.wait(timeout=60)


CONTRAST = """
() => {
  const parse = (text) => { const found = text.match(/[\\d.]+/g).map(Number); return found.length < 4 ? [...found, 1] : found; };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || !element.getClientRects().length || element.closest("option, script, title, .hidden")) continue;
    const style = getComputedStyle(element);
    if (style.visibility === "hidden") continue;
    const layers = [];
    for (let up = element; up; up = up.parentElement) layers.unshift(parse(getComputedStyle(up).backgroundColor));
    const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
    const under = layers.reduce((below, layer) => over(layer, below), canvas);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const front = over(parse(ink), under);
    const [a, b] = [light(front.slice(0, 3)), light(under.slice(0, 3))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${element.tagName}.${element.className} ${node.textContent.trim().slice(0, 30)}`);
  }
  return low;
}
"""
"""Texts whose contrast with what lies under them is below 4.5 to 1 (WCAG 2, relative luminance)."""
