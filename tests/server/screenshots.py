"""Takes the pictures of the main pages that stand in README and docs.

python -m tests.server.screenshots RUN [--latent 741] [--into docs]

RUN is the output folder of `make demo`. The server and the browser are real; whoever runs this looks at the pictures before they are committed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from autointerp.pipeline.folder import RunFolder
from tests.server.browser import Watched, open_browser, serving

PASSAGE = "class Reader:\n    def open(self, path):\n        with open(path) as file:\n            return file.read()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--latent", type=int, default=741)
    parser.add_argument("--into", type=Path, default=Path("docs"))
    given = parser.parse_args()
    note = RunFolder(given.run).read_note()
    assert note is not None, f"{given.run} is not the output of a run"
    run = f"/runs/{note.run_id}"
    pages = {
        "page-run": (run, {}),
        "page-latents": (f"{run}/latents?sort=causal_effect&descending=true", {}),
        "page-latent": (f"{run}/latents/quickstart/{given.latent}", {}),
        "page-latent-dark": (f"{run}/latents/quickstart/{given.latent}", {"color_scheme": "dark"}),
        "page-new": ("/new", {}),
    }
    with (
        tempfile.TemporaryDirectory() as place,
        serving(Path(place) / "runs", str(given.run.absolute())) as address,
        open_browser() as browser,
    ):
        for name, (path, context) in pages.items():
            watched = Watched(browser, address, viewport={"width": 1280, "height": 860}, **context)
            watched.go(path).screenshot(path=given.into / f"{name}.png")
            watched.close()
        watched = Watched(browser, address, viewport={"width": 1280, "height": 860})
        page = watched.go(f"{run}/search")
        page.get_by_label("Passage").fill(PASSAGE)
        page.get_by_role("button", name="Find latents").click()
        page.wait_for_url("**/text", timeout=300_000)
        page.screenshot(path=given.into / "page-search.png")
        watched.close()
        watched = Watched(browser, address, viewport={"width": 390, "height": 844}, device_scale_factor=2)
        watched.go(f"{run}/latents/quickstart/{given.latent}").screenshot(path=given.into / "page-latent-phone.png")
        watched.close()


if __name__ == "__main__":
    main()
