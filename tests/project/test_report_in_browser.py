"""The report page in a real browser: whole, quiet, sortable, and readable on a phone.

Where there is no Chromium the tests are skipped, and on CI they fail: `apt-get install chromium`.
"""

import html
import json
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pareflow.reporting import page

DOCUMENT = Path(__file__).parents[1] / "unit" / "report.json"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# Offline and quiet: without these it looks for updates and accounts, and writes into the user's profile.
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--allow-file-access-from-files", "--enable-logging=stderr", "--v=0"),
)
PROBE = """<!doctype html><meta charset="utf-8"><pre id="out"></pre>
<script>
const answers = {};
for (const width of WIDTHS) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.src = "ADDRESS";
  frame.addEventListener("load", () => {
    const page = frame.contentDocument;
    answers[width] = (() => { SCRIPT })();
    document.getElementById("out").textContent = JSON.stringify(answers);
  });
  document.body.append(frame);
}
</script>"""
PHONE, TABLET, DESKTOP = 390, 768, 1280


@pytest.fixture(scope="module")
def chromium() -> str:
    """The path of the browser."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("CI must open the report in Chromium, but none is installed. apt-get install chromium")
    if found is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    return found


@pytest.fixture
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DOCUMENT.read_text("utf-8"))
    return found


@pytest.fixture
def report(document: dict[str, Any], tmp_path: Path) -> Path:
    """The page of a whole run, on disk."""
    target = tmp_path / "report.html"
    page.write(document, target)
    return target


def browse(chromium: str, target: Path, *options: str) -> tuple[str, list[str]]:
    """What the browser prints, and what the page's console says: errors, and what its policy refused."""
    profile = target.parent / "profile"
    command = [chromium, *OPTIONS, f"--user-data-dir={profile}", *options, target.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def ask(chromium: str, report: Path, script: str, *widths: int) -> list[Any]:
    """What `script` answers in frames of each width; `page` is the report's document in `frame`."""
    probe = report.with_name("probe.html")
    filled = PROBE.replace("ADDRESS", report.as_uri()).replace("WIDTHS", str(list(widths)))
    probe.write_text(filled.replace("SCRIPT", script), "utf-8")
    dom, complaints = browse(chromium, probe, "--dump-dom")
    assert not complaints
    found = re.search(r'<pre id="out">(.+?)</pre>', dom, re.DOTALL)
    assert found is not None, "the page was not loaded, or the script did not answer"
    answers = json.loads(html.unescape(found[1]))
    return [answers[str(width)] for width in widths]


def test_the_page_is_whole_and_the_console_is_silent(
    chromium: str, report: Path, document: dict[str, Any]
) -> None:
    dom, complaints = browse(chromium, report, "--dump-dom")

    assert not complaints
    assert "answers 2.87 times as fast as ONNX Runtime fp32 (2.78 to 2.95)" in dom
    assert len(re.findall(r'<tr [^>]*id="variant-\d+"', dom)) == len(document["variants"])
    assert dom.count('class="interval-bar"') == len(document["verdict"]["checks"])
    assert dom.count('class="mark"') == 3 * 14  # three widths of one plot of 14 measured variants
    assert dom.count("<button>") == 14 + 1  # one for each column, and Copy: the script ran to its end


@pytest.mark.parametrize("broken", ["<script>nobody()</script>", '<img src="https://example.com/x.png">'])
def test_a_page_that_fails_or_loads_something_would_be_noticed(
    chromium: str, report: Path, broken: str
) -> None:
    report.write_text(report.read_text("utf-8").replace("</body>", f"{broken}</body>"), "utf-8")

    _, complaints = browse(chromium, report, "--dump-dom")

    assert complaints


def test_nothing_overflows_sideways_however_long_the_words(
    chromium: str, report: Path, document: dict[str, Any]
) -> None:
    word = "x" * 200
    row, lost = document["variants"][2], document["variants"][14]
    row["recipe"] = lost["reason"] = row["ran"]["notes"] = row["ran"]["version"] = word
    row["verdict"]["checks"][0].update(clause=word, reason=word)
    document["environment"].update(processor=word, flags=[word])
    document["profile"]["operators"]["torch"][0]["name"] = word
    document.update(pipeline=word, command=word, registered={"name": word, "version": 1, "alias": word})
    page.write(document, report)
    widths = (320, PHONE, TABLET, DESKTOP)

    found = ask(chromium, report, "return page.documentElement.scrollWidth;", *widths)

    assert found == list(widths)


def test_a_page_that_overflows_would_be_noticed(chromium: str, report: Path) -> None:
    wide = '<p style="width:600px">wide</p><h1'
    report.write_text(report.read_text("utf-8").replace("<h1", wide), "utf-8")

    assert ask(chromium, report, "return page.documentElement.scrollWidth;", PHONE)[0] > PHONE


def test_each_width_shows_its_own_plot(chromium: str, report: Path) -> None:
    script = """
      const plots = [...page.querySelectorAll(".plot > div")];
      return plots.filter((plot) => plot.offsetHeight > 0).map((plot) => plot.className);"""

    assert ask(chromium, report, script, PHONE, TABLET, DESKTOP) == [["narrow"], ["middle"], ["wide"]]


def test_text_on_a_phone_is_large_enough(chromium: str, report: Path) -> None:
    script = """
      const texts = [...page.querySelectorAll("main *, .narrow text")].filter((e) => e.textContent.trim());
      const shown = texts.filter((e) => e.getClientRects().length && e.closest(".middle, .wide") === null);
      return Math.min(...shown.map((e) => parseFloat(frame.contentWindow.getComputedStyle(e).fontSize)));"""

    assert ask(chromium, report, script, PHONE)[0] >= 11


def test_sorting_keeps_the_baseline_on_top_and_the_unknown_last(
    chromium: str, report: Path, document: dict[str, Any]
) -> None:
    script = """
      const table = page.querySelector("table.variants");
      const column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith("p50"));
      const order = () => [...table.tBodies[0].rows].map((row) => Number(row.id.split("-")[1]));
      const click = () => { table.tHead.rows[0].cells[column].firstChild.click(); return order(); };
      return [click(), click(), click()];"""
    times = {i: (row["latency_ms"] or {}).get("p50") for i, row in enumerate(document["variants"])}
    measured = sorted((i for i in times if i and times[i] is not None), key=lambda i: (times[i], i))
    unknown = [i for i in times if times[i] is None]

    ((rising, falling, given),) = ask(chromium, report, script, DESKTOP)

    assert rising == [0, *measured, *unknown]
    assert falling == [0, *reversed(measured), *unknown]
    assert given == list(times)


def test_a_mark_tells_its_numbers_and_leads_to_its_row(chromium: str, report: Path) -> None:
    script = """
      const mark = page.querySelector('.wide a.mark[href="#variant-2"]');
      mark.dispatchEvent(new Event("focus"));
      const tip = page.getElementById("tip");
      return [tip.hidden, tip.textContent, page.querySelector(mark.getAttribute("href")).className];"""

    ((hidden, text, row),) = ask(chromium, report, script, DESKTOP)

    assert not hidden
    assert text.splitlines()[1:] == ["p50 0.248 ms (0.243 to 0.254)", "accuracy 0.9843"]
    assert row == "ok winner"


def test_every_name_that_assistive_technology_needs_is_there(chromium: str, report: Path) -> None:
    script = """
      const named = (e) => e.getAttribute("aria-label") || e.getAttribute("aria-hidden") === "true";
      const levels = [...page.querySelectorAll("h1, h2, h3")].map((e) => Number(e.tagName[1]));
      return {
        drawings: [...page.querySelectorAll("svg")].every(named),
        regions: [...page.querySelectorAll("section, [role=region]")].every((e) =>
          page.getElementById(e.getAttribute("aria-labelledby"))),
        headers: [...page.querySelectorAll("th")].every((e) => e.scope),
        jumps: levels.some((level, i) => level > (levels[i - 1] ?? 0) + 1),
        language: page.documentElement.lang,
      };"""

    (found,) = ask(chromium, report, script, DESKTOP)

    assert found == {"drawings": True, "regions": True, "headers": True, "jumps": False, "language": "en"}


def test_text_stands_out_from_its_ground_in_both_themes(chromium: str, report: Path) -> None:
    # WCAG 2.2, success criterion 1.4.3: at least 4.5 to 1, with its own formula.
    script = """
      const style = (e) => frame.contentWindow.getComputedStyle(e);
      const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
      const light = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
      const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
      const ground = (e) => {
        const colour = numbers(style(e).backgroundColor);
        return colour[3] === 0 ? ground(e.parentElement) : colour;
      };
      const ratio = (e) => {
        const [a, b] = [luminance(numbers(style(e).color)), luminance(ground(e))];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      };
      const words = [...page.querySelectorAll("body *:not(script):not(svg *)")].filter((e) =>
        [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
      return ["light", "dark"].map((scheme) => {
        page.documentElement.style.colorScheme = scheme;
        const faint = words.filter((e) => !(ratio(e) >= 4.5)).map((e) => [e.className, ratio(e)]);
        return [words.length > 300, style(page.body).backgroundColor, faint];
      });"""

    (found,) = ask(chromium, report, script, DESKTOP)

    assert found == [[True, "rgb(246, 247, 249)", []], [True, "rgb(17, 20, 24)", []]]


def test_a_picture_of_it_is_not_blank(chromium: str, report: Path, tmp_path: Path) -> None:
    picture = tmp_path / "report.png"

    browse(chromium, report, f"--screenshot={picture}", "--window-size=1280,2400")
    content = picture.read_bytes()

    assert struct.unpack(">II", content[16:24]) == (1280, 2400)
    assert len(content) > 100_000  # the same size all white is 13 kB
