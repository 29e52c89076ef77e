"""Text: the tokenizer, chat templates, the detokeniser, and the parsers of thinking and tool calls. No JAX.

from qwen3_jax.text import Tokenizer, parse
tokenizer = Tokenizer.from_pretrained("Qwen3-0.6B/")
prompt = tokenizer.apply_chat_template([{"role": "user", "content": "What is 2+2?"}])
parse("<think>\\nEasy.\\n</think>\\n\\n4").content       # "4"
"""

from .chat import built_in_template, check_messages, render, soft_switch
from .detokenize import Detokenizer
from .errors import ChatTemplateError, TextError, TokenizerError
from .messages import check_message
from .parsers import AnswerParser, Parsed, Piece, ThinkingParser, ToolCallParser, parse
from .thinking import STOP_TEXT
from .tokenizer import Tokenizer
from .tool_json import ToolCall
from .train_tokenizer import train_from_files, train_tokenizer

__all__ = [
    "STOP_TEXT",
    "AnswerParser",
    "ChatTemplateError",
    "Detokenizer",
    "Parsed",
    "Piece",
    "TextError",
    "ThinkingParser",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "ToolCallParser",
    "built_in_template",
    "check_message",
    "check_messages",
    "parse",
    "render",
    "soft_switch",
    "train_from_files",
    "train_tokenizer",
]
