"""A judge behind a URL, against a small server on this machine."""

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mlcalib.judging import Pair, UrlJudge, judge, judged_win_rates, position_bias, read_template
from mlcalib.judging.url_judge import find_letter

PAIRS = [Pair(str(number), "en", "?", f"good {number}", "bad") for number in range(5)]


@contextmanager
def server(answer):
    """Serve ``answer(request number, headers, body)`` → (status, headers, text)."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers, body))
            status, headers, text = answer(len(seen), self.headers, body)
            content = text.encode()
            self.send_response(status)
            for name, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", seen
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


def says(reply):
    choice = {"message": {"role": "assistant", "content": reply}, "finish_reason": "stop"}
    return 200, {}, json.dumps({"choices": [choice]})


def honest(_, __, body):
    question = body["messages"][0]["content"]
    return says("A" if "<answer_A>\ngood" in question else "**B**")


def make(url, **options):
    return UrlJudge(url, "judge-1", read_template(), wait=0.001, timeout=5, **options)


def test_judging_over_http(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with server(honest) as (url, seen):
        judgements = judge(PAIRS, make(url, key="MY_KEY"), tmp_path / "out.jsonl", progress=False)
    assert judged_win_rates(judgements)["en"].losses == 5
    assert position_bias(judgements).same == 5
    assert len(seen) == 10
    path, headers, body = seen[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("judge-1", 0)
    assert "secret" not in (tmp_path / "out.jsonl").read_text()


def test_without_a_key_none_is_sent(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with server(honest) as (url, seen):
        judge(PAIRS[:1], make(url), tmp_path / "out.jsonl", progress=False)
    assert "Authorization" not in seen[0][1]


def test_another_key_than_the_one_named_is_never_sent(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.delenv("MY_KEY", raising=False)
    with server(honest) as (url, seen):
        make(url, key="MY_KEY").compare(PAIRS[0])
    assert "secret" not in str(seen[0][1])


def test_what_passes_is_tried_again(tmp_path):
    def flaky(number, headers, body):
        if number == 1:
            return 429, {"Retry-After": "0.01"}, "slow down"
        if number in (2, 4):
            return 503, {}, "overloaded"
        return honest(number, headers, body)

    with server(flaky) as (url, seen):
        judgements = judge(PAIRS, make(url, workers=1), tmp_path / "out.jsonl", progress=False)
    assert len(seen) == 13
    assert len(judgements) == 10


def test_what_does_not_pass_is_one_error_and_keeps_the_rest(tmp_path):
    out = tmp_path / "out.jsonl"

    def dies(number, headers, body):
        return honest(number, headers, body) if number < 4 else (500, {}, "broken")

    with server(dies) as (url, seen):
        by = make(url, workers=1, retries=2)
        with pytest.raises(ConnectionError, match="failed 3 times, the last with: HTTP 500 br"):
            judge(PAIRS, by, out, progress=False)
        assert len(seen) >= 6
    assert len(out.read_text().splitlines()) == 3


def test_no_server():
    with server(honest) as (url, _):
        pass
    with pytest.raises(ConnectionError, match="failed 2 times"):
        make(url, retries=1).compare(PAIRS[0])


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (401, {}, r"HTTP 401: wrong key; the key is read from the environment variable MY_KEY"),
        (404, {}, r"HTTP 404: .* is the URL right"),
        (400, {}, r"HTTP 400: wrong key\."),
        (302, {"Location": "http://elsewhere/"}, r"redirects to http://elsewhere/: give that URL"),
    ],
)
def test_refusals_are_not_tried_again(status, headers, message):
    with server(lambda *_: (status, headers, "wrong key")) as (url, seen):
        with pytest.raises(ValueError, match=message):
            make(url, key="MY_KEY").compare(PAIRS[0])
        assert len(seen) == 1


@pytest.mark.parametrize("text", ["<html>", "{}", '{"choices": []}', "[]"])
@pytest.mark.parametrize("kind", ["text/html", "application/json"])
def test_other_servers(text, kind):
    with (
        server(lambda *_: (200, {"Content-Type": kind}, text)) as (url, _),
        pytest.raises(ValueError, match=r"did not answer as an OpenAI-compatible server: [^E]"),
    ):
        make(url).compare(PAIRS[0])


def test_a_reply_that_says_no_more_than_it_must():
    text = json.dumps({"choices": [{"message": {"content": "A"}}]})
    with server(lambda *_: (200, {}, text)) as (url, _):
        assert make(url).compare(PAIRS[0]).evidence == {"reply": "A", "stopped": None}


def test_a_key_that_no_header_can_hold_is_not_shown(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret\n")
    with pytest.raises(ValueError, match="variable MY_KEY holds more than an API key") as raised:
        make("http://127.0.0.1", key="MY_KEY")
    assert "secret" not in str(raised.value)


def test_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        by = UrlJudge(url, "judge-1", read_template(), wait=0.001, timeout=0.1, retries=1)
        with pytest.raises(ConnectionError, match=r"failed 2 times, the last with: .*timed out"):
            by.compare(PAIRS[0])


def test_a_reply_without_a_letter_is_no_opinion():
    with server(lambda *_: says("Both have merits.")) as (url, _):
        opinion = make(url).compare(PAIRS[0])
    assert opinion.letter is None
    assert opinion.evidence["reply"] == "Both have merits."


def test_urls():
    for url in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(ValueError, match="expected http:// or https://"):
            make(url)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("A", "A"), (" b.\n", "B"), ("**C**", "C"), ("Answer: B", "B"), ("[[A]]", "A"),
        ("The second is more fluent.\n\nB", "B"), ("B\nIt is more fluent.", "B"),
        ("Final answer: **A**", "A"), ("My verdict is [[C]], all considered.", "C"), ('"A"', "A"),
        ("", None), ("A good question", None), ("Both", None), ("D", None), ("AB", None),
    ],
)  # fmt: skip
def test_find_letter(reply, letter):
    assert find_letter(reply) == letter
