"""A page as a real browser shows it: a headless Chromium, driven by its command line alone."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_OWN = "not an origin"  # who asks where the browser asks for itself, like for its updates
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-sync"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=5000"),
)
_MEASURE = """
<script>
const shown = [...document.querySelectorAll(%s)].map(each => {
  const box = each.getBoundingClientRect();
  return {tag: each.tagName, width: box.width, height: box.height, natural: each.naturalWidth ?? null,
          paths: [...each.querySelectorAll("path, rect, line")].filter(
            part => { const own = part.getBoundingClientRect(); return own.width + own.height > 0; }).length};
});
const page = {scroll: document.documentElement.scrollWidth, client: document.documentElement.clientWidth};
document.body.insertAdjacentHTML("beforeend", "<pre id=measured></pre>");
document.getElementById("measured").textContent = JSON.stringify({shown, page});
</script>
"""


@dataclass(frozen=True)
class Opened:
    """`console`: its lines, errors among them. `requests`: the URLs that the page asked for."""

    dom: str
    console: list[str]
    requests: list[str]


def browser() -> str:
    """The installed browser; without one the test is skipped."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(_NAMES)}); on Debian: apt-get install chromium")
    return found


def open_page(page: Path, scratch: Path, width: int = 1280) -> Opened:
    """Load the page, wait until it is shown, and tell what happened. `scratch`: a folder for the browser's files."""
    log = scratch / "net.json"
    command = [
        browser(),
        *_OPTIONS,
        *(f"--user-data-dir={scratch / 'profile'}", f"--log-net-log={log}", f"--window-size={width},1000"),
        *("--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    asked = [event.get("params", {}) for event in json.loads(log.read_text("utf-8"))["events"]]
    urls = {params["url"] for params in asked if params.get("initiator", _OWN) != _OWN}
    return Opened(done.stdout, console, sorted(urls))


def measure(page: Path, selector: str, scratch: Path, width: int = 1280) -> dict[str, Any]:
    """`shown`: sizes in pixels of the elements that `selector` finds, and how many shapes in them have a size;
    `page`: how wide it is, and how wide the window."""
    copy = scratch / "measured.html"
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text("utf-8"))  # which allows no script
    copy.write_text(text.replace("</body>", _MEASURE % json.dumps(selector) + "</body>"), "utf-8")
    found = re.search(r'<pre id="measured">(.*?)</pre>', open_page(copy, scratch, width).dom, re.DOTALL)
    assert found, "the page's script did not run"
    measured: dict[str, Any] = json.loads(unescape(found[1]))
    return measured
