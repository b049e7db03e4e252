"""Pictures of five pages of the built site, and a look whether any page is wider than its window.

    python look_at_pages.py build/docs/html build/docs/pictures

Needs Debian's chromium and chromium-driver. Each page is opened at the width of a desk (1,280) and
of a phone (390), in light and in dark. The exit status is 1 if a page has to be scrolled
sideways on a phone.
"""

import base64
import sys
from pathlib import Path
from typing import Any

from selenium import webdriver

SHOWN = (
    *("index", "start", "notebooks/01_quickstart"),
    *("results/calibration-languages", "reference/commands"),
)
_BEYOND = """
const width = arguments[0];
const scrolls = (element) => {
  for (let each = element.parentElement; each.tagName != "ARTICLE"; each = each.parentElement)
    if (["auto", "scroll"].includes(getComputedStyle(each).overflowX)
        && each.getBoundingClientRect().right <= width + 1) return true;
  return false;
};
let most = document.documentElement.scrollWidth - width;
const wide = "table, pre, img, svg";
for (const each of document.querySelector("article").querySelectorAll(wide))
  if (!scrolls(each)) most = Math.max(most, each.getBoundingClientRect().right - width);
return Math.max(0, Math.floor(most));
"""
WIDTHS = {"wide": 1280, "phone": 390}


def opened() -> webdriver.Chrome:
    """Start chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for each in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(each)
    return webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))


def show(browser: Any, page: Path, width: int, scheme: str) -> None:
    """Open a page at a width, in a scheme of colours."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.resolve().as_uri())


def beyond(browser: Any, width: int) -> int:
    """Return by how many pixels something reaches beyond the window that does not scroll."""
    return browser.execute_script(_BEYOND, width)


def main() -> int:
    """Take pictures and measure; print what is too wide."""
    site, pictures = map(Path, sys.argv[1:])
    pictures.mkdir(parents=True, exist_ok=True)
    browser = opened()
    try:
        for name in SHOWN:
            for kind, width in WIDTHS.items():
                for scheme in ("light", "dark"):
                    show(browser, site / f"{name}.html", width, scheme)
                    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
                    path = pictures / f"{name.replace('/', '-')}-{kind}-{scheme}.png"
                    path.write_bytes(base64.b64decode(shot["data"]))
        wide = {}
        left_out = {"genindex.html", "search.html", "py-modindex.html"}
        every = [page for page in sorted(site.rglob("*.html")) if page.name not in left_out]
        for page in every:
            show(browser, page, WIDTHS["phone"], "light")
            if pixels := beyond(browser, WIDTHS["phone"]):
                wide[page.relative_to(site)] = pixels
    finally:
        browser.quit()
    for page, pixels in wide.items():
        print(f"{page}: {pixels} pixels wider than a phone")
    print(f"{len(SHOWN) * 4} pictures in {pictures}; {len(every)} pages, {len(wide)} too wide")
    return 1 if wide else 0


if __name__ == "__main__":
    sys.exit(main())
