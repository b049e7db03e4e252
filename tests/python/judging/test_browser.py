"""The rating page in a real browser, with a person's keys."""

import json
import shutil
import time
from pathlib import Path

import pytest
from test_annotate import MODELS, NASTY

from mlcalib.judging import Pair, read_key, read_ratings, score_ratings, write_page

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="chromium is missing: apt-get install -y chromium chromium-driver",
    ),
]

CONTRAST = Path(__file__).with_name("contrast.js").read_text()
PAIRS = [
    *(Pair(str(n), "en", f"Prompt {n}", f"good {n}", f"bad {n}") for n in range(6)),
    Pair("1", "ar", "اكتب نصيحة.", "good تدرّب كل يوم ولو قليلا.", "bad: I do not know."),
    Pair("1", "zh", "天空为什么是蓝色的?", "good 因为散射。", ""),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,820",
        f"--user-data-dir={folder / 'profile'}",
    ):  # fmt: skip
        options.add_argument(argument)
    (folder / "downloads").mkdir()
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(folder / "downloads")}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver, folder / "downloads"
    driver.quit()


class Person:
    """Somebody at the keyboard."""

    def __init__(self, browser, page):
        self.driver, self.downloads = browser
        self.url = page.as_uri()
        self.driver.get(self.url)
        self.driver.execute_script("localStorage.clear()")  # all files share one
        self.reload()

    def see(self, name):
        return self.driver.find_element(By.ID, name)

    def press(self, *keys):
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def start(self, name, *languages):
        self.see("name").clear()
        self.see("name").send_keys(name)
        for box in self.driver.find_elements(By.CSS_SELECTOR, "#languages input"):
            if box.is_selected() != (box.get_attribute("value") in languages):
                box.send_keys(Keys.SPACE)
        self.see("name").send_keys(Keys.ENTER)

    @property
    def shown(self):
        return tuple(self.see(name).text for name in ("prompt", "answer-0", "answer-1"))

    @property
    def count(self):
        return self.see("count").text

    def reload(self):
        self.driver.get("about:blank")
        self.driver.get(self.url)

    def export(self, *how):
        before = set(self.downloads.glob("*.json"))
        self.press(*how)
        for _ in range(100):
            if new := set(self.downloads.glob("*.json")) - before:
                return new.pop()
            time.sleep(0.05)
        raise AssertionError("nothing was downloaded")

    def complaints(self):
        return [each["message"] for each in self.driver.get_log("browser")]


def better(shown):
    """Return the key for the good answer."""
    return Keys.ARROW_LEFT if shown[1].startswith("good") else "2"


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "rate.html"
    write_page(PAIRS, path, MODELS)
    return path


def test_a_person_rates(browser, page):
    person = Person(browser, page)
    person.start("Ada Ω", "en")
    assert person.count == "0 of 6 rated"
    first = person.shown
    person.press(better(first))
    second = person.shown
    assert second[0] != first[0]
    person.press("0")
    assert person.count == "2 of 6 rated"
    person.press("u")
    assert person.shown == second
    person.press(better(second))
    person.press(Keys.BACKSPACE)
    assert person.shown == second

    person.reload()
    assert (person.count, person.shown) == ("1 of 6 rated", second)
    person.press("0", "s")
    for _ in range(3):
        person.press(better(person.shown))
    assert person.count == "6 of 6 rated"
    assert person.see("done").is_displayed()
    assert not person.see("item").is_displayed()
    person.press("1", "0")  # nothing is left to rate
    assert person.count == "6 of 6 rated"

    file = person.export("e")
    assert file.name.startswith("ratings-Ada-Ω-")
    content = json.loads(file.read_text())
    assert (content["rater"], content["languages"], content["items"]) == ("Ada Ω", ["en"], 6)
    assert all(rating["seconds"] >= 0 for rating in content["ratings"])
    ratings = read_ratings([file], read_key(page.with_name("rate.key.json")))
    score = score_ratings(ratings)["en"]
    assert (score.win_rate.losses, score.win_rate.ties, score.win_rate.wins) == (4, 1, 0)
    assert score.skipped == 1
    assert {rating.id for rating in ratings if rating.verdict == "tie"} == {second[0].split()[1]}
    assert person.complaints() == []


def test_raters_see_their_own_order_and_sides(browser, page):
    person = Person(browser, page)
    seen = {}
    for name in ("Ada", "Ben", "Eve", "Ada"):
        person.start(name, "en", "ar", "zh")
        order = []
        while not person.see("done").is_displayed():
            order.append(person.shown)
            person.press("1")
        seen.setdefault(name, order)
        if name == "Ada" and "Eve" in seen:
            assert order == []  # her ratings of before are there
            while person.see("undo").is_enabled():
                person.press("u")
                order.insert(0, person.shown)
            assert order == seen["Ada"]
        person.see("leave").click()
    assert len({tuple(each[0] for each in order) for order in seen.values()}) == 3
    sides = [each[1].startswith("good") for order in seen.values() for each in order]
    assert 4 < sum(sides) < 20
    person.start("Eve", "zh")
    assert person.count == "1 of 1 rated"
    assert person.complaints() == []


def test_scripts_stand_right(browser, page):
    person = Person(browser, page)
    person.start("Ada", "ar")
    prompt = person.see("prompt")
    assert (prompt.get_attribute("dir"), prompt.get_attribute("lang")) == ("rtl", "ar")
    assert prompt.value_of_css_property("direction") == "rtl"
    answers = [person.see("answer-0"), person.see("answer-1")]
    answers.sort(key=lambda each: each.text, reverse=True)
    assert [each.get_attribute("dir") for each in answers] == ["rtl", "ltr"]
    person.see("leave").click()
    person.start("Ada", "zh")
    assert (person.see("prompt").get_attribute("lang"), person.shown[0]) == ("zh", PAIRS[-1].prompt)
    answers = [person.see("answer-0"), person.see("answer-1")]
    assert sorted("empty" in each.get_attribute("class") for each in answers) == [False, True]


def test_what_models_write_stays_text(browser, tmp_path):
    path = tmp_path / "nasty.html"
    texts = [NASTY, "<img src=x onerror=document.title='owned'>", "<b>bold</b> javascript:alert(1)"]
    write_page([Pair("<i>", "en", *texts)], path, MODELS, question=texts[1])
    person = Person(browser, path)
    person.start("<script>document.title='owned'</script>", "en")
    assert person.driver.title == texts[1]
    shown = [
        person.driver.execute_script("return arguments[0].textContent", person.see(name))
        for name in ("prompt", "answer-0", "answer-1")
    ]
    assert sorted(shown) == sorted(texts)
    assert person.driver.find_elements(By.CSS_SELECTOR, "img, b, script:not([id]) ~ script") == []
    # Even if a text became markup, the policy would not let it run.
    person.driver.execute_script(
        "document.getElementById('prompt').innerHTML = \"<img src=x onerror='window.owned=1'>\""
    )
    time.sleep(0.1)
    assert person.driver.execute_script("return window.owned") is None
    assert any("Content Security Policy" in message for message in person.complaints())
    person.press("1")
    content = json.loads(person.export("e").read_text())
    assert content["rater"] == "<script>document.title='owned'</script>"


def test_keys_do_only_what_they_should(browser, page):
    person = Person(browser, page)
    person.see("name").send_keys("120su")
    assert person.see("start").is_displayed()
    person.press(Keys.ENTER)
    assert person.see("problem").text == "Please choose a language."
    person.start("120su", "en")
    ActionChains(person.driver).key_down(Keys.CONTROL).send_keys("0").key_up(Keys.CONTROL).perform()
    assert person.count == "0 of 6 rated"
    held = {"type": "keyDown", "key": "1", "text": "1", "autoRepeat": True}
    person.driver.execute_cdp_cmd("Input.dispatchKeyEvent", held)
    assert person.count == "0 of 6 rated"
    person.see("keys").send_keys(Keys.SPACE)
    person.press("1")
    assert person.count == "0 of 6 rated"
    person.driver.find_element(By.CSS_SELECTOR, "[data-choice='1']").send_keys(Keys.ENTER)
    assert person.count == "1 of 6 rated"
    status = person.see("status").get_attribute("textContent")
    assert status == "Answer 2 is better. 1 of 6 rated."


def test_without_storage_the_page_says_so(browser, page):
    driver = browser[0]
    broken = "Storage.prototype.setItem = () => { throw new Error('full'); };"
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": broken})
    try:
        person = Person(browser, page)
        person.start("Ada", "en")
        person.press("1")
        assert person.count == "1 of 6 rated"
        assert person.see("unsaved").is_displayed()
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_seen_and_named(browser, page, scheme):
    """Contrast of all text is that of WCAG AA; every control has a name; focus is visible."""
    driver = browser[0]
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    person = Person(browser, page)
    assert person.driver.execute_script(CONTRAST) == []
    person.start("Ada", "en")
    person.press("1")
    assert person.driver.execute_script(CONTRAST) == []
    for control in driver.find_elements(By.CSS_SELECTOR, "button, input, progress, .answers .text"):
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")
    person.press(Keys.TAB)
    focused = driver.switch_to.active_element
    assert focused.value_of_css_property("outline-width") == "3px"
