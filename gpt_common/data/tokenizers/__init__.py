"""Text to token ids and back: characters, GPT-2's vocabulary, and byte-level BPE trained from a corpus.

What a tokenizer would do with an id is settled by one table, id -> bytes, so that decoding is the same code for all.
"""

from gpt_common.data.tokenizers.bpe import BpeTokenizer, default_bpe_vocab_size, train_bpe, train_bpe_on
from gpt_common.data.tokenizers.characters import CharTokenizer
from gpt_common.data.tokenizers.cutting import cut_pieces, last_cut_before_whitespace
from gpt_common.data.tokenizers.extended import ExtendedTokenizer
from gpt_common.data.tokenizers.gpt2 import Gpt2Tokenizer
from gpt_common.data.tokenizers.saved import known_tokenizer, load_tokenizer
from gpt_common.data.tokenizers.tokenizer import (
    BYTE_LETTERS,
    END_OF_TEXT,
    TextStream,
    Tokenizer,
    default_prompt,
    identity,
    prefix_token,
)

__all__ = [
    "BYTE_LETTERS",
    "END_OF_TEXT",
    "BpeTokenizer",
    "CharTokenizer",
    "ExtendedTokenizer",
    "Gpt2Tokenizer",
    "TextStream",
    "Tokenizer",
    "cut_pieces",
    "default_bpe_vocab_size",
    "default_prompt",
    "identity",
    "known_tokenizer",
    "last_cut_before_whitespace",
    "load_tokenizer",
    "prefix_token",
    "train_bpe",
    "train_bpe_on",
]
