"""A judge behind an OpenAI-compatible URL."""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from typing import Any, NoReturn

from mlcalib.judging.judges import Letter, Opinion, fill
from mlcalib.judging.texts import Pair

_LONGEST_WAIT = 60.0
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class UrlJudge:
    """A chat model that is asked over HTTP: ``POST {url}/chat/completions``.

    Replies are greedy (temperature 0). What may pass (no connection, a timeout, 429, 5xx) is tried
    again, after twice the wait each time or as long as the server says, a minute at most.

    Args:
        url: base URL, e.g. ``http://127.0.0.1:8000/v1``.
        model: what the server calls the model.
        template: see ``read_template``.
        key: environment variable that holds the API key; no key is sent if it is not set.
        max_tokens: of a reply; models that think first need more.
        retries: how often a failed question is asked again.
        wait: seconds before the first of these.
        timeout: seconds without a byte from the server.
        workers: questions at the same time.

    Raises:
        ValueError: not an HTTP URL.
    """

    reads_both = True

    def __init__(
        self,
        url: str,
        model: str,
        template: str,
        *,
        key: str = "OPENAI_API_KEY",
        max_tokens: int = 16,
        retries: int = 5,
        wait: float = 1.0,
        timeout: float = 120.0,
        workers: int = 4,
    ) -> None:
        if not re.match(r"https?://[^/]", url):
            raise ValueError(
                f"The URL is '{url}', expected http:// or https:// and a host, e.g. "
                "http://127.0.0.1:8000/v1."
            )
        self._url = url.rstrip("/") + "/chat/completions"
        self._template = template
        self._key = key
        self._retries = retries
        self._wait = wait
        self._timeout = timeout
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._request = {"model": model, "temperature": 0, "max_tokens": max_tokens}
        self.workers = workers
        self.identity = {"kind": "chat", "url": url, "template": template, **self._request}

    def compare(self, pair: Pair) -> Opinion:
        """See ``Judge.compare``.

        Raises:
            ValueError: the server refuses the question, or answers in another form.
            ConnectionError: it could not be reached, or failed, each time.
        """
        message = {"role": "user", "content": fill(self._template, pair)}
        answer = self._ask({**self._request, "messages": [message]})
        try:
            choice = answer["choices"][0]
            reply = choice["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{self._url} did not answer as an OpenAI-compatible server: {str(answer)[:300]}"
            ) from error
        return Opinion(find_letter(reply), {"reply": reply, "stopped": choice.get("finish_reason")})

    def _ask(self, content: dict[str, Any]) -> Any:
        wait = self._wait
        for attempt in range(self._retries + 1):
            try:
                return self._post(content)
            except _Transient as error:
                if attempt == self._retries:
                    raise ConnectionError(
                        f"{self._url} failed {attempt + 1} times, the last with: {error}. What was "
                        "judged is kept; run the same command again to go on."
                    ) from error
                time.sleep(min(error.wait or wait, _LONGEST_WAIT))
                wait *= 2
        raise AssertionError("unreachable")

    def _post(self, content: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key):
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps(content).encode()
        request = urllib.request.Request(self._url, body, headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                text = response.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error)
        # URLError is an OSError, as are timeouts and broken connections.
        except (OSError, http.client.HTTPException) as error:
            raise _Transient(
                str(getattr(error, "reason", error)) or type(error).__name__
            ) from error
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"{self._url} answered what is not JSON: {text[:300]}") from error

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        said = error.read().decode("utf-8", "replace").strip()[:500]
        if error.code in _TRANSIENT:
            after = error.headers.get("Retry-After", "")
            seconds = float(after) if re.fullmatch(r"\d+(\.\d+)?", after) else None
            raise _Transient(f"HTTP {error.code} {said}", seconds) from error
        advice = {
            401: f"; the key is read from the environment variable {self._key}",
            403: f"; the key is read from the environment variable {self._key}",
            404: "; is the URL right (it mostly ends in /v1), and the model's name?",
        }.get(error.code, "")
        if 300 <= error.code < 400:
            advice = f"; it redirects to {error.headers.get('Location')}: give that URL"
        raise ValueError(f"{self._url} refused with HTTP {error.code}: {said}{advice}.") from error


def find_letter(reply: str) -> Letter | None:
    """Return the letter that a reply names: all of it, its last line, or in [[ ]]; else None.

    A reply that only uses a letter ("A good question …") names none.
    """
    lines = reply.strip().splitlines() or [""]
    letter = r"[\s*_`'\"(\[{<]*(?:(?:final\s+)?(?:answer|verdict)\s*(?:is)?\s*:?)?[\s*_`'\"(\[{<]*"
    for text in (reply.strip(), lines[-1], lines[0]):
        if found := re.fullmatch(rf"{letter}([ABCabc])[\s*_`'\")\]}}>.!]*", text, re.IGNORECASE):
            return found[1].upper()  # type: ignore[return-value]  # one of the three
    bracketed = re.findall(r"\[\[([ABC])\]\]", reply)
    return bracketed[-1] if bracketed else None


class _Transient(Exception):  # noqa: N818
    """What may pass; ``wait`` is how long the server asks to wait, if it does."""

    def __init__(self, said: str, wait: float | None = None) -> None:
        super().__init__(said)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would make a GET of a POST, and send the key to wherever it is sent."""

    def redirect_request(self, *_: Any) -> None:
        return None
