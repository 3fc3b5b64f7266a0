"""The Modelfile from which `ollama create` makes a model of a GGUF file: context, ends and template."""

from __future__ import annotations

from collections.abc import Sequence

from convert.formats.tokenizer_files import writes_chatml
from gpt_common.data.conversations.reading import Conversation, Message
from gpt_common.data.conversations.written import END, TURN, Template, chatml
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError

NAME = "Modelfile"
BASE = 'TEMPLATE "{{ .Prompt }}"'
"""A text goes in as it is, and is continued."""
NO_PENALTY = "PARAMETER repeat_penalty 1"
"""Ollama's own 1.1 makes every token of the last 64 less likely: letters, too, where a token is one."""
CHATML = f'''TEMPLATE """{{{{- range .Messages }}}}{TURN}{{{{ .Role }}}}
{{{{ .Content }}}}{END}
{{{{ end }}}}{TURN}assistant
"""'''


def modelfile(
    name: str, file: str, context: int, tokenizer: Tokenizer | None, ends: Sequence[str], template: Template | None
) -> str:
    """The text of one.

    Args:
        name: its own.
        file: the GGUF file's name, beside it.
        context: in tokens.
        ends: names of the tokens at which a text ends.
        template: of conversations, if it is another than ours.
    """
    lines = [f"# ollama create NAME -f {name}; written by python -m convert export --to gguf", f"FROM ./{file}"]
    lines += [f"PARAMETER num_ctx {context}", NO_PENALTY, *(f"PARAMETER stop {_quoted(end)}" for end in ends)]
    if template is not None:
        lines += _translated(template)
    else:
        lines.append(CHATML if tokenizer is not None and writes_chatml(tokenizer) else BASE)
    return "\n".join(lines) + "\n"


def _translated(template: Template) -> list[str]:
    """A Jinja template in Ollama's language, if it writes what ChatML does; what it does says which that is.

    Many write a system message of their own where a conversation has none, and nothing else that is different.
    """
    system, talk = Message("system", "Be brief."), (Message("user", "Hi."), Message("assistant", "Hello."))
    whole, without = Conversation("a trial", (system, *talk)), Conversation("a trial", talk)
    try:
        with template.writer() as write:
            found = [written.text for written in write([whole, without])]
    except UserError:
        found = []
    if found[:1] == [chatml(whole).text] and found[1].endswith(chatml(without).text):
        own = found[1].removesuffix(chatml(without).text)
        said = own.removeprefix(f"{TURN}system\n").removesuffix(f"{END}\n")
        if own in ("", f"{TURN}system\n{said}{END}\n"):
            return [CHATML, *([f'SYSTEM """{said}"""'] if own else [])]
    return ["# No TEMPLATE: that of conversations is in the GGUF file, as Jinja; Ollama knows many of them by sight."]


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
