"""The study of many clients: it notes what is said otherwise than it should be, and what is not said."""

from __future__ import annotations

import json

from benchmarks.studies.clients import text_of


def test_what_an_answer_says() -> None:
    def choice(text: str) -> str:
        return json.dumps({"choices": [{"text": text}]})

    assert text_of(choice("abc").encode(), False) == "abc"
    stream = f"data: {choice('ab')}\n\ndata: {choice('c')}\n\ndata: [DONE]\n\n".encode()
    assert text_of(stream, True) == "abc"
    for stream_or_not in (True, False):
        assert text_of(b'{"error": {"message": "full"}}', stream_or_not) != "abc"
    assert text_of(b'data: {"error": {"message": "late"}}\n\n', True) is None
