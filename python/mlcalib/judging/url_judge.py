"""A judge on a server with an OpenAI-compatible URL."""

import os
import re
import time
from typing import Any, NoReturn

from mlcalib.common.optional import optional
from mlcalib.judging.judges import Letter, Opinion, fill
from mlcalib.judging.texts import Pair

_LONGEST_WAIT = 60.0
_TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_KEY_ADVICE = "; the key is read from the environment variable {key}"
_ADVICE = {
    401: _KEY_ADVICE,
    403: _KEY_ADVICE,
    404: "; is the URL right (it mostly ends in /v1), and the model's name?",
}


class UrlJudge:
    """A chat model that is asked over HTTP: ``POST {url}/chat/completions``, by the openai client.

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
        ImportError: openai is not installed.
        ValueError: not an HTTP URL, or a key that no HTTP header can hold.
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
        self._openai = optional("openai", "judge", "A judge on a server")
        secret = os.environ.get(key)
        if secret and not re.fullmatch(r"[!-~]+", secret):
            raise ValueError(
                f"The environment variable {key} holds more than an API key: a space, a line break "
                "or a letter outside of ASCII; set it to the key alone."
            )
        self._client = self._openai.OpenAI(
            base_url=url,
            # The client must have a key, and would look for one under other names.
            api_key=secret or "none",
            timeout=timeout,
            max_retries=0,  # its own waits are fixed, and end at 8 seconds
            # A redirect would send the key to wherever it leads.
            http_client=self._openai.DefaultHttpxClient(follow_redirects=False),
        )
        self._headers = {} if secret else {"Authorization": self._openai.Omit()}
        self._url = url.rstrip("/") + "/chat/completions"
        self._template = template
        self._key = key
        self._retries = retries
        self._wait = wait
        self._request = {"model": model, "temperature": 0, "max_tokens": max_tokens}
        self.workers = workers
        self.identity = {"kind": "chat", "url": url, "template": template, **self._request}

    def compare(self, pair: Pair) -> Opinion:
        """See ``Judge.compare``.

        Raises:
            ValueError: the server refuses the question, or answers in another form.
            ConnectionError: it could not be reached, or failed, each time.
        """
        answer = self._ask(fill(self._template, pair))
        try:  # the client takes whatever a server says
            choice = answer.choices[0]
            reply = choice.message.content or ""
        except (AttributeError, IndexError, TypeError) as error:
            raise self._foreign(answer) from error
        stopped = getattr(choice, "finish_reason", None)
        return Opinion(find_letter(reply), {"reply": reply, "stopped": stopped})

    def _ask(self, question: str) -> Any:
        wait = self._wait
        for attempt in range(self._retries + 1):
            try:
                return self._post(question)
            except _Transient as error:
                if attempt == self._retries:
                    raise ConnectionError(
                        f"{self._url} failed {attempt + 1} times, the last with: {error}. What was "
                        "judged is kept; run the same command again to go on."
                    ) from error
                time.sleep(min(error.wait or wait, _LONGEST_WAIT))
                wait *= 2
        raise AssertionError("unreachable")

    def _post(self, question: str) -> Any:
        messages = [{"role": "user", "content": question}]
        try:
            return self._client.chat.completions.create(
                messages=messages, extra_headers=self._headers, **self._request
            )
        except self._openai.APIStatusError as error:
            self._refuse(error)
        except self._openai.APIConnectionError as error:  # timeouts too
            raise _Transient(str(error.__cause__ or error) or type(error).__name__) from error
        except ValueError as error:  # not JSON, though the server calls it so
            raise self._foreign(getattr(error, "doc", error)) from error

    def _refuse(self, error: Any) -> NoReturn:
        code, headers = error.status_code, error.response.headers
        said = error.response.text.strip()[:500]
        if code in _TRANSIENT:
            after = headers.get("Retry-After", "")
            seconds = float(after) if re.fullmatch(r"\d+(\.\d+)?", after) else None
            raise _Transient(f"HTTP {code} {said}", seconds) from error
        advice = _ADVICE.get(code, "").format(key=self._key)
        if 300 <= code < 400:
            advice = f"; it redirects to {headers.get('Location')}: give that URL"
        raise ValueError(f"{self._url} refused with HTTP {code}: {said}{advice}.") from error

    def _foreign(self, answer: object) -> ValueError:
        return ValueError(
            f"{self._url} did not answer as an OpenAI-compatible server: {str(answer)[:300]}"
        )


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
