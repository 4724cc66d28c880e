"""Opens a page in a headless browser, does what a reader does, and prints what happened as JSON.

    .venv-browser/bin/python tests/browser/look.py PAGE WIDTH SCHEME [SCREENSHOT]

Run by tests/browser/test_report.py in the environment that has Playwright; imports nothing of ours.
"""

import json
import sys
import time

from playwright.sync_api import Page, sync_playwright

BROWSER = "/usr/bin/chromium-headless-shell"
# Text that reaches beyond its own box or the page, of elements that are seen and do not scroll.
TOO_WIDE = """() => Array.from(document.querySelectorAll("main *, header *, nav *")).filter((each) => {
  const box = each.getBoundingClientRect();
  return box.width && box.right > document.documentElement.clientWidth + 1 && !each.closest(".scroll, pre, .plot");
}).map((each) => each.outerHTML.slice(0, 120))"""


def keys(page: Page) -> dict[str, object]:
    """What the arrow keys say of the first chart and of the first answer's tokens."""
    found: dict[str, object] = {}
    chart = page.locator("svg.lines").first
    chart.focus()
    page.keyboard.press("End")
    found["chart_end"] = page.locator(".chart").filter(has=chart).locator(".readout").first.text_content()
    page.keyboard.press("Home")
    found["chart_home"] = page.locator(".chart").filter(has=chart).locator(".readout").first.text_content()
    if page.locator(".said .k").count():
        page.locator('.said .k[tabindex="0"]').first.focus()
        found["token"] = page.locator(".detail").first.text_content()
        page.keyboard.press("ArrowRight")
        found["next_token"] = page.locator(".detail").first.text_content()
        found["focused"] = page.evaluate("document.activeElement.textContent")
    return found


def pointer(page: Page) -> dict[str, object]:
    """What pointing at a chart, a token and a name says."""
    found: dict[str, object] = {}
    box = page.locator("svg.lines").first
    box.scroll_into_view_if_needed()
    box.hover()
    found["chart"] = page.locator(".readout").first.text_content()
    if page.locator(".said .k").count():
        page.locator(".said .k").nth(1).hover()
        found["token"] = page.locator(".detail").first.text_content()
    if page.locator(".legend button:visible").count():
        page.locator(".legend button:visible").first.hover()
        found["faded"] = page.locator(".chart.fade").count()
    return found


def main(file: str, width: str, scheme: str, screenshot: str = "") -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": int(width), "height": 900}, color_scheme=scheme)
        problems, asked = [], []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        began = time.perf_counter()
        page.goto(f"file://{file}")
        page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found = {"seconds": time.perf_counter() - began, "wide": page.evaluate(TOO_WIDE)}
        found["scroll_width"] = page.evaluate("document.documentElement.scrollWidth")
        found["paper"] = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        if screenshot:
            page.screenshot(path=screenshot, full_page=True)
        found["keys"] = keys(page)
        found |= {"pointer": pointer(page), "problems": problems, "asked": asked}
        browser.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
