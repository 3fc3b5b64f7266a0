"""The page in a browser: a prompt is typed, its answer read as it comes, alternatives opened, checkpoints compared."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Page, browser
from tests.gpt_common.serving.served import LETTERS, Saying, Server, make_model, serving_made_up

HOSTILE = "<b>bold</b><img src=x onerror=f>"
"""What a model may say; it is taken for letters."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for step in (5, 10):
        make_model(folder / "plain", step=step)
    make_model(folder / "chat", chat=True)
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[Server]:
    def open_model(source: Any) -> Saying:
        early = "plain/checkpoints/step-000005" in str(source.checkpoint)
        return Saying(source.tokenizer, "zyxwv" if early else "abcdefgh")

    with serving_made_up([runs / "plain", runs / "chat"], open_model) as found:
        yield found


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(window: Page, server: Server) -> Iterator[Page]:
    window.problems.clear()
    window.asked.clear()
    window.show(f"{server.url}/")
    window.wait("document.querySelectorAll('.column').length === 1")
    yield window
    assert window.problems == [], "the console complained"
    assert all(url.startswith((server.url, "data:")) for url in window.asked), "nothing from elsewhere"


def fill(page: Page, name: str, value: str) -> None:
    """Type into a field, in place of what is there."""
    page.run(f"document.getElementById('{name}').focus(); document.getElementById('{name}').select()")
    page.type(value)


def done(page: Page) -> None:
    """Until nothing is being written."""
    page.wait("document.querySelectorAll('.t').length > 0 && !document.querySelector('[aria-busy]')")


def texts(page: Page) -> list[str]:
    """What stands in each column."""
    return list(page.run("[...document.querySelectorAll('.text')].map((one) => one.textContent)"))


def go(page: Page, prompt: str = "xa", tokens: int = 12) -> None:
    fill(page, "prompt", prompt)
    fill(page, "max_tokens", str(tokens))
    fill(page, "temperature", "0")
    page.click("#go")
    done(page)


def test_a_prompt_is_typed_and_its_answer_read(page: Page) -> None:
    go(page)
    assert texts(page) == ["xabcdefghabcde"]
    assert "12 tokens" in page.run("document.querySelector('.foot').textContent")
    shades = page.run("[...document.querySelectorAll('.t')].map((one) => one.className)")
    assert shades == ["t s0"] * 12, "each was nearly certain"
    assert "has finished, 12 tokens" in page.run("document.getElementById('live').textContent")


def test_from_the_keyboard_alone(page: Page) -> None:
    fill(page, "max_tokens", "5")
    fill(page, "temperature", "0")
    fill(page, "prompt", "a")
    page.press("Enter", ctrl=True)
    done(page)
    assert texts(page) == ["abcdef"]
    page.run("document.querySelector(\".t[tabindex='0']\").focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        page.press(key)
    assert page.run("document.activeElement.textContent") == "c"
    assert page.run("document.querySelectorAll(\".t[tabindex='0']\").length") == 1, "one stop of the tab key"
    page.press("Enter")
    page.wait("!document.querySelector('.alternatives').hidden")
    assert page.run("document.activeElement.getAttribute('aria-label')").startswith("c, 99 %, chosen")
    page.press("Escape")
    assert page.run("document.querySelector('.alternatives').hidden")
    assert page.run("document.activeElement.textContent") == "c", "back to where one was"
    page.press("Enter")
    page.press("ArrowDown")
    page.press("Enter")
    done(page)
    assert texts(page)[0].startswith("ab")
    assert not texts(page)[0].startswith("abc")


def test_another_word_and_on_from_it(page: Page) -> None:
    go(page, "a", 8)
    page.click(".t[data-at='3']")
    page.wait("!document.querySelector('.alternatives').hidden")
    words = page.run("[...document.querySelectorAll('.alternatives .word')].map((one) => one.textContent)")
    assert len(words) == 10
    assert words[0] == "e"
    number = words.index("!")
    page.click(f".alternatives button:nth-child({number + 1})")
    done(page)
    assert texts(page) == ["abcd!abcd"], "after it, as far as was asked for"
    assert page.run("document.querySelector('.picked').textContent") == "!"
    assert page.run("document.querySelector('.picked').className") == "t s7 picked", "it was a surprise"


def test_two_checkpoints_side_by_side(page: Page) -> None:
    go(page, "a", 6)
    page.click("#compare")
    page.wait("document.querySelectorAll('.column').length === 2")
    page.wait("document.querySelectorAll('.column')[1].querySelectorAll('.t').length === 6")
    done(page)
    assert texts(page) == ["abcdefg", "azyxwvz"]
    chosen = page.run("[...document.querySelectorAll('select')].map((one) => one.selectedOptions[0].textContent)")
    assert chosen == ["plain · step 10 · loss 2.000", "plain/step-000005 · loss 2.000"]
    places = page.run("[...document.querySelectorAll('.column')].map((one) => one.getBoundingClientRect().top)")
    assert places[0] == places[1]
    page.click("#go")
    done(page)
    assert texts(page) == ["abcdefg", "azyxwvz"]
    page.click(".column:nth-child(2) .remove")
    assert len(texts(page)) == 1


def test_a_question(page: Page) -> None:
    page.run("const one = document.querySelector('select'); one.value = 3; one.dispatchEvent(new Event('change'))")
    page.click("#chat")
    go(page, "Where?", 4)
    assert texts(page) == ["Where?\n\nabcd"]
    page.click(".t[data-at='1']")
    page.click(".alternatives button:nth-child(1)")
    done(page)
    assert texts(page) == ["Where?\n\nabcd"]


def test_what_is_stopped_stays_as_it_is(window: Page, runs: Path) -> None:
    def open_model(source: Any) -> Saying:
        return Saying(source.tokenizer, wait=lambda: time.sleep(0.003))

    with serving_made_up([runs / "plain"], open_model, max_tokens=10**6) as server:
        window.show(f"{server.url}/")
        window.wait("document.querySelectorAll('.column').length === 1")
        fill(window, "prompt", "a")
        fill(window, "max_tokens", str(10**6))
        fill(window, "temperature", "0")
        window.click("#go")
        window.wait("document.querySelectorAll('.t').length > 20")
        assert not window.run("document.getElementById('stop').disabled")
        window.click("#stop")
        done(window)
        assert texts(window)[0].startswith("abcdefghabcdefghabcde")
        assert "stopped" in window.run("document.querySelector('.foot').textContent")
        assert window.run("document.getElementById('stop').disabled")
        deadline = time.monotonic() + 20
        while server.ask("/health")[1]["writing"]:
            assert time.monotonic() < deadline, "its place is not free"


def test_what_cannot_be_answered_is_said(page: Page) -> None:
    fill(page, "prompt", "ß")
    page.click("#go")
    page.wait("!document.getElementById('problem').hidden")
    assert "ß" in page.run("document.getElementById('problem').textContent")
    page.problems.clear()  # the browser notes the status 400


def test_what_a_model_says_is_no_markup(window: Page, tmp_path: Path) -> None:
    letters = "".join(sorted(set(LETTERS + HOSTILE + "&;")))
    saying = "".join(dict.fromkeys("<img src=x/>&;"))
    make_model(tmp_path / "<b>run", letters=letters)
    with serving_made_up([tmp_path / "<b>run"], lambda source: Saying(source.tokenizer, saying)) as server:
        window.show(f"{server.url}/")
        window.wait("document.querySelectorAll('.column').length === 1")
        go(window, f"{HOSTILE}\n", len(saying))
        assert texts(window) == [f"{HOSTILE}\n{saying}"]
        assert window.run("document.querySelectorAll('main b, main img').length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_its_window(width: int, dark: bool, page: Page, tmp_path: Path) -> None:
    """Nothing to scroll sideways, with alternatives open and columns side by side; text that can be told from paper."""
    page.size(width, 900, dark=dark)
    go(page, "xa", 40)
    page.click("#compare")
    page.wait("document.querySelectorAll('.column').length === 2")
    done(page)
    page.click(".t[data-at='7']")
    page.wait("!document.querySelector('.alternatives').hidden")
    assert page.run("document.documentElement.scrollWidth") <= width
    places = page.run(
        "[...document.querySelectorAll('.alternatives:not([hidden]), button:not([hidden]), input, select, textarea')]"
        ".map((one) => one.getBoundingClientRect()).filter((r) => r.width).map((r) => [r.left, r.right])"
    )
    assert all(left >= 0 and right <= width for left, right in places)
    assert contrast(page) >= 4.5
    page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def contrast(page: Page) -> float:
    """Least contrast (WCAG 2.2, 1.4.3) of text with what is behind it, the strongest shade included."""
    return float(
        page.run("""(() => {
  const rgb = (text) => { const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    c.fillStyle = getComputedStyle(document.body).backgroundColor; c.fillRect(0, 0, 1, 1);
    c.fillStyle = text; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3); };
  const light = (c) => c.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [light(rgb(a)), light(rgb(b))].sort(); return (y + 0.05) / (x + 0.05); };
  const style = (selector) => getComputedStyle(document.querySelector(selector));
  const on = (one, other) => ratio(style(one).color, style(other).backgroundColor);
  return Math.min(on('body', '.legend .s7'), on('.soft', 'body'), on('label', 'body'), on('#go', '#go'),
    on('textarea', 'textarea'));
})()""")
    )


def test_everything_has_a_name(page: Page) -> None:
    """For those who hear it: each field and button says what it is."""
    go(page, "a", 3)
    page.click(".t[data-at='1']")
    nameless = page.run("""
[...document.querySelectorAll('input, textarea, select, button, [role=group], [role=dialog]')]
  .filter((one) => !(one.getAttribute('aria-label') || one.labels?.length || one.textContent.trim()))
  .map((one) => one.outerHTML)""")
    assert nameless == []
    assert page.run("document.documentElement.lang") == "en"
    assert page.run("document.getElementById('live').getAttribute('aria-live')") == "polite"
