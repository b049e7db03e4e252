# ruff: noqa: E501, RUF001
"""Screenshots of the rating page in three scripts, for docs/how-to/judge.md; needs chromium."""

import shutil
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By

from mlcalib.judging import Pair, Source, write_page

IMAGES = Path(__file__).parent.parent / "docs" / "images"
PAIRS = [
    Pair(
        "1",
        "en",
        "What is the difference between weather and climate? Answer for a twelve-year-old.",
        "Weather is what happens outside today or this week: rain, sun, wind. Climate is what the "
        "weather is usually like in a place over many years.\n\nA good way to remember it: climate "
        "tells you what clothes to own, weather tells you what to wear today.",
        "Weather and climate are the same the weather is the climate of the day and the climate is "
        "the weather of the climate.",
    ),
    Pair(
        "1",
        "zh",
        "请用三句话解释为什么天空是蓝色的。",
        "阳光由各种颜色的光组成。光穿过大气时会被空气分子散射，波长短的蓝光比波长长的红光散射得"
        "多。因此，从各个方向进入我们眼睛的散射光以蓝光为主，天空看起来就是蓝色的。",
        "天空是蓝色的，因为海洋是蓝色的。海洋的颜色反射到天空上。所以天空是蓝色的。",
    ),
    Pair(
        "1",
        "ar",
        "اكتب ثلاث نصائح لمن يريد أن يتعلم لغة جديدة.",
        "١. تدرّب كل يوم ولو لعشر دقائق، فالمواظبة أهم من طول الدرس.\n٢. استمع إلى اللغة كما "
        "يتحدثها أهلها: برامج وأغانٍ ومحادثات (podcasts).\n٣. تكلّم منذ اليوم الأول ولا تخف من الخطأ.",
        "Duolingo تطبيق جيد لتعلم اللغات. تعلم اللغات مهم جدا. تعلم اللغات مهم جدا لأن تعلم اللغات "
        "مهم.",
    ),
]
THEMES = {"en": "light", "zh": "dark", "ar": "light"}


def main() -> None:
    """Write docs/images/rating-{en,zh,ar}.png."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1100,720"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "rate.html"
        write_page(PAIRS, page, (Source("float"), Source("quantized")))
        for code, theme in THEMES.items():
            feature = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
            driver.get(page.as_uri())
            driver.execute_script("localStorage.clear()")
            driver.get(page.as_uri())
            driver.find_element(By.ID, "name").send_keys("A. Rater")
            for box in driver.find_elements(By.CSS_SELECTOR, "#languages input"):
                if box.get_attribute("value") == code:
                    box.click()
            driver.find_element(By.ID, "begin").click()
            driver.save_screenshot(str(IMAGES / f"rating-{code}.png"))
    driver.quit()


if __name__ == "__main__":
    main()
