"""The way of somebody new, in a real browser: an empty start, a labelled demo, a search, a corrected label, a download."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd
import pytest

from tests.server.browser import Watched, open_browser, serving

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_from_an_empty_start_to_a_corrected_dictionary(tmp_path: Path) -> None:
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    with open_browser() as browser, serving(tmp_path / "runs", env=env) as address:
        watched = Watched(browser, address, accept_downloads=True)
        page = watched.go("/")
        assert "Nothing has been labelled here yet" in page.locator("main").inner_text()
        page.get_by_role("link", name="Label the small coder").click()
        page.locator("input[name=latents]").fill("48")
        page.locator("input[name=num_tokens]").fill("60000")
        page.locator("input[name=name]").fill("first-try")
        page.get_by_role("button", name="Show what it asks and costs").click()
        page.wait_for_load_state("networkidle")
        assert "48" in page.locator("main").inner_text()
        page.get_by_role("button", name="Start").click()
        # the job's page leads to the run's, whose progress comes by itself
        page.wait_for_url(re.compile("/runs/"), timeout=180_000)
        page.locator(".stages").wait_for(timeout=120_000)
        page.get_by_role("link", name="Browse the latents").wait_for(timeout=500_000)
        assert page.locator(".tile", has_text="State").inner_text().split()[-1] == "done"
        page.get_by_role("link", name="Browse the latents").click()
        assert page.locator("tbody tr").count() == 48
        run = re.search("/runs/[^/]+", page.url)[0]  # type: ignore[index]

        page = watched.go(f"{run}/search")
        page.get_by_label("Passage").fill("class Reader:\n    def open(self):\n        return None\n" * 4)
        page.get_by_role("button", name="Find latents").click()
        page.wait_for_url("**/text", timeout=180_000)
        assert page.locator("mark").count() > 0
        # most of what fires on it was not among the 48: it is shown with its exemplars all the same
        page.locator(".found a").first.click()
        page.locator(".window").first.wait_for()

        page = watched.go(f"{run}/latents")
        page.locator("tbody a").first.click()
        page.get_by_text("Review this label").click()
        page.get_by_label("Label").fill("a better label")
        page.get_by_label("Your name").fill("ann")
        page.get_by_role("button", name="Save this text").click()
        page.wait_for_load_state("networkidle")
        assert page.locator("h1").inner_text() == "a better label"
        latent = int(page.url.rpartition("/")[2])

        page = watched.go(f"{run}/downloads")
        assert "1 label was reviewed since" in page.locator("main").inner_text()
        page.get_by_role("button", name="Make it anew").click()
        page.get_by_text("every review is in it").wait_for(timeout=120_000)
        with page.expect_download() as started:
            page.locator("a[download]", has_text="parquet").click()
        started.value.save_as(tmp_path / "labels.parquet")
        table = pd.read_parquet(tmp_path / "labels.parquet").set_index("latent")
        assert len(table) == 48
        assert table.label[latent] == "a better label"
        assert table.explainer[latent] == "human"
        watched.close()
