"""The page's picture in the README, taken of a real model at work.

PYTHONPATH=tests python -m server.screenshot MODEL docs/images/serve.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import expect

from server.browser import chromium
from server.server_process import ServerProcess

QUESTIONS = ("What is the capital of France?", "Name three fruits, as a list.")
SECONDS = 120_000


def take(model: Path, image: Path) -> None:
    """Ask the model two questions on its page and write what can then be seen."""
    with ServerProcess(model) as server, chromium() as browser:
        page = browser.new_page(
            viewport={"width": 1100, "height": 640}, device_scale_factor=2, color_scheme="light"
        )
        page.goto(server.url)
        expect(page.locator("#model")).to_have_text(model.resolve().name)
        page.locator("#max-tokens").fill("80")
        page.locator("#temperature").fill("0")
        for count, question in enumerate(QUESTIONS, 1):
            page.locator("#prompt").fill(question)
            page.locator("#prompt").press("Enter")
            expect(page.locator(".figures")).to_have_count(count, timeout=SECONDS)
        page.wait_for_timeout(3500)  # the status is asked for every three seconds
        image.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=image)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
