"""The Modelfile from which `ollama create` makes a model of a GGUF file: context, ends and template."""

from __future__ import annotations

from collections.abc import Sequence

from convert.formats.tokenizer_files import writes_chatml
from gpt_common.data.conversations.written import END, TURN, Template
from gpt_common.data.tokenizers import Tokenizer

NAME = "Modelfile"
BASE = 'TEMPLATE "{{ .Prompt }}"'
"""A text goes in as it is, and is continued."""
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
    lines += [f"PARAMETER num_ctx {context}", *(f"PARAMETER stop {_quoted(end)}" for end in ends)]
    if template is not None:
        lines.append("# The template of conversations is the one in the GGUF file, tokenizer.chat_template.")
    else:
        lines.append(CHATML if tokenizer is not None and writes_chatml(tokenizer) else BASE)
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
