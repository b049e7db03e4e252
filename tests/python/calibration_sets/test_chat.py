"""Conversations as calibration text."""

import json

import pytest
from small_tokenizer import make_tokenizer

import mlcalib
from mlcalib.corpora import Tally, open_corpus

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}{{ eos_token }}{% endfor %}"
)


def conversation(number):
    return [
        {"role": "user", "content": f"When does market {number} open?"},
        {"role": "assistant", "content": "Before sunrise."},
    ]


CHATS = [conversation(number) for number in range(20)]


@pytest.fixture
def tokenizer():
    """One that puts <s> before and </s> after each text by itself, as Llama's do."""
    tokenizer = make_tokenizer("<s> $A </s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def calibrate(tokenizer, chats=CHATS, chat_template=True, tokens=100, **options):
    return mlcalib.calibration(
        tokenizer,
        corpus={"en": chats},
        tokens=tokens,
        seq_len=32,
        chat_template=chat_template,
        **options,
    )


def ids_of(calibration, language="en"):
    found = calibration.ids[language].flatten().tolist()
    return found[: calibration.tokens[language]]


def test_the_template_writes_all_there_is(tokenizer):
    calibration = calibrate(tokenizer, [CHATS[3]], tokens=1)
    text = "<s>[user] When does market 3 open?</s>[assistant] Before sunrise.</s>"
    wanted = tokenizer(text, add_special_tokens=False).input_ids
    assert wanted.count(tokenizer.bos_token_id) == 1
    assert wanted.count(tokenizer.eos_token_id) == 2
    whole = calibrate(tokenizer, [CHATS[3]], tokens=len(wanted), window_bos=False)
    assert ids_of(whole) == wanted
    # As transformers itself tokenizes a conversation.
    batch = tokenizer.apply_chat_template(CHATS[3], tokenize=True)
    assert wanted == list(batch["input_ids"])
    assert "chat template says where a conversation begins" in calibration.separator


def test_a_separator_that_was_asked_for_is_added(tokenizer):
    found = calibrate(tokenizer, [CHATS[3]], tokens=1000, separator="\n", allow_short=True)
    assert tokenizer.decode(ids_of(found)).endswith("Before sunrise.</s>\n")


def test_the_record_has_the_template(tokenizer, tmp_path):
    own = calibrate(tokenizer)
    file = tmp_path / "chat.jinja"
    file.write_text(TEMPLATE)
    bare = make_tokenizer("<s> $A </s>")
    for template in (file, TEMPLATE):
        assert ids_of(calibrate(bare, chat_template=template)) == ids_of(own)
        assert calibrate(bare, chat_template=template).chat_template == own.chat_template
    assert len(own.describe()["chat_template"]) == 64
    other = calibrate(bare, chat_template=TEMPLATE.replace("[", "<"))
    assert other.chat_template != own.chat_template
    assert other.fingerprint != own.fingerprint
    named = make_tokenizer("<s> $A </s>")
    named.chat_template = {"default": "x", "mine": TEMPLATE}
    assert ids_of(calibrate(named, chat_template="mine")) == ids_of(own)


def test_what_the_template_refuses_is_counted(tokenizer):
    refused = [{"role": "system", "content": "Be brief."}, *conversation(1)]
    calibration = calibrate(tokenizer, [*CHATS, refused, refused], tokens=10_000, allow_short=True)
    counted = {"conversations that the chat template refuses": 2}
    assert calibration.report["en"].dropped == counted
    assert calibration.report["en"].documents == 20
    said = "en: left out of 22 read: 2 conversations that the chat template refuses (first: Templ"
    assert said in calibration.table()
    assert "no system message" in calibration.table()
    with pytest.raises(ValueError, match=r"no documents in 'en' \(left out of 1 read: 1 conv"):
        calibrate(tokenizer, [refused])


@pytest.mark.parametrize(
    ("chats", "template", "message"),
    [
        (["plain text"], True, r"text in 'en' is plain, but a chat template takes conv.*\?field"),
        (CHATS, False, r"consists of conversations, .*pass --chat-template \(chat_template=True\)"),
        (CHATS, "{% for %}", r"chat template is not valid Jinja \(line 1: "),
    ],
)
def test_text_and_conversations_are_not_mixed_up(tokenizer, chats, template, message):
    with pytest.raises(ValueError, match=message):
        calibrate(tokenizer, chats, template)


def test_a_tokenizer_without_a_template():
    with pytest.raises(ValueError, match=r"has no chat template .*--chat-template-file FILE"):
        calibrate(make_tokenizer())


THOUGHT = [{"type": "thinking", "thinking": "it opens early"}, {"type": "text", "text": "six"}]
CALL = {"type": "function", "function": {"name": "opening", "arguments": '{"market": 3}'}}
CALLED = {"type": "function", "function": {"name": "opening", "arguments": {"market": 3}}}
SHAREGPT = [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "Before sunrise."}]


@pytest.mark.parametrize(
    ("row", "found", "dropped"),
    [
        ({"messages": CHATS[0]}, CHATS[0], None),
        (
            {"conversations": SHAREGPT, "id": 3},
            [
                {"role": "user", "content": "When?"},
                {"role": "assistant", "content": "Before sunrise."},
            ],
            None,
        ),
        ({"messages": []}, None, "blank documents"),
        ({"messages": [{"role": "user", "content": " "}]}, None, "blank documents"),
        (
            {"messages": [{"role": "bing", "content": "x"}]},
            None,
            "conversations with an unknown speaker",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            None,
            "conversations with a message that is no text",
        ),
        ({"messages": None}, None, "documents without messages"),
        ({"text": None, "messages": CHATS[0]}, CHATS[0], None),
        (
            {"messages": [{"role": "Developer", "content": "Be brief."}]},
            [{"role": "system", "content": "Be brief."}],
            None,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]},
            [{"role": "user", "content": "a\nb"}],
            None,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            None,
            "conversations with a message that is no text",
        ),
        (
            {"messages": [{"role": "assistant", "content": THOUGHT, "name": None}]},
            [{"role": "assistant", "content": "six", "reasoning_content": "it opens early"}],
            None,
        ),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            [{"role": "assistant", "content": "", "tool_calls": [CALLED]}],
            None,
        ),
        (
            {"messages": [{"role": "user", "content": "x", "reasoning": "\ud83d"}]},
            None,
            "documents that are not valid Unicode",
        ),
    ],
)
def test_rows(tmp_path, row, found, dropped):
    (tmp_path / "en").mkdir()
    lines = [json.dumps(row), json.dumps({"text": "plain"})]
    (tmp_path / "en/calib.jsonl").write_text("\n".join(lines))
    tally = Tally()
    rows = list(open_corpus(f"files:{tmp_path}").documents("en", "calib").read(tally))
    assert rows == ([found, "plain"] if found else ["plain"])
    assert tally == Tally(2, {dropped: 1} if dropped else {})


def test_tools_reach_the_template(tokenizer, tmp_path):
    (tmp_path / "en").mkdir()
    schema = {"type": "function", "function": {"name": "opening", "parameters": {}}}
    rows = [
        {"messages": CHATS[0], "tools": tools} for tools in ([schema], json.dumps([schema]), None)
    ]
    (tmp_path / "en/calib.jsonl").write_text("\n".join(map(json.dumps, rows)))
    template = (
        "{% for t in tools or [] %}{{ t.function.name }}!{% endfor %}{{ messages[0].content }}"
    )
    found = mlcalib.calibration(
        tokenizer, "en", f"files:{tmp_path}", tokens=500, seq_len=32, chat_template=template,
        allow_short=True,
    )  # fmt: skip
    text = tokenizer.decode(ids_of(found), skip_special_tokens=True)
    assert text.count("opening!When does") == 2
    assert text.count("When does") == 3
    what = "conversations of which the chat template changes or leaves out a message"
    assert found.report["en"].noted == {what: 3}
    assert "(first: of the assistant)" in found.table()


@pytest.mark.parametrize("given", ["parts", "developer"])
def test_conversations_in_memory_are_read_like_those_in_files(tokenizer, given):
    chats = {
        "parts": [[{"role": "user", "content": [{"type": "text", "text": "a market"}]}]],
        "developer": [[{"role": "developer", "content": "a market"}]],
    }[given]
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    found = calibrate(tokenizer, chats, template, allow_short=True)
    speaker = {"parts": "user", "developer": "system"}[given]
    assert tokenizer.decode(ids_of(found), skip_special_tokens=True) == f"{speaker}: a market"


def test_what_a_template_raises_is_counted(tokenizer):
    message = r"20 conversations that the chat template refuses \(first: TypeError: can only conc"
    with pytest.raises(ValueError, match=message):
        calibrate(tokenizer, chat_template="{% for m in messages %}{{ m['role'] + 1 }}{% endfor %}")


def test_a_message_of_another_shape(tmp_path):
    (tmp_path / "en").mkdir()
    (tmp_path / "en/calib.jsonl").write_text('{"messages": [{"speaker": "A", "text": "x"}]}')
    with pytest.raises(
        ValueError, match=r"unknown speaker \(first: .*, line 1: a message with speaker"
    ):
        list(open_corpus(f"files:{tmp_path}").documents("en", "calib"))


def test_evaluation_takes_plain_text(tmp_path, tokenizer):
    from small_models import tiny_llama

    (tmp_path / "en").mkdir()
    (tmp_path / "en/eval.jsonl").write_text(json.dumps({"messages": CHATS[0]}))
    model = mlcalib.quantize(
        tiny_llama(vocabulary=384), method="rtn", tokenizer=tokenizer, group_size=32
    )
    with pytest.raises(ValueError, match="The eval text in 'en' consists of conversations"):
        mlcalib.evaluate(model, "en", f"files:{tmp_path}", tokens=8, seq_len=32, progress=False)
