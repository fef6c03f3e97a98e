"""nginx's configuration, read as nginx reads it: what a rendered text means, whatever it was meant to be."""

from __future__ import annotations

from typing import Any

__all__ = ["parse", "skeleton"]

SPACE, ESCAPES = " \t\r\n", {"t": "\t", "r": "\r", "n": "\n", '"': '"', "'": "'", "\\": "\\"}
MAPS = {"map", "geo", "split_clients"}
Tree = list[tuple[tuple[str, ...], Any]]


def parse(text: str) -> Tree:
    """Return directives as (words, block or None), by the rules of ngx_conf_read_token() in ngx_conf_file.c."""
    tree, end = _block(text, 0)
    assert end == len(text), f"a block is closed that was not open, at character {end}"
    return tree


def skeleton(tree: Tree) -> list[Any]:
    """Return only the names of directives, and how many words each has; of maps and their like not the keys."""
    return [
        (words[0], len(words), None if block is None else len(block) if words[0] in MAPS else skeleton(block))
        for words, block in tree
    ]


def _block(text: str, at: int) -> tuple[Tree, int]:
    found: Tree = []
    words: list[str] = []
    while at < len(text):
        sign = text[at]
        if sign in SPACE:
            at += 1
        elif sign == "#":
            at = text.find("\n", at) + 1 or len(text)
        elif sign == ";":
            assert words, f"nothing before ; at character {at}"
            found.append((tuple(words), None))
            words, at = [], at + 1
        elif sign == "{":
            inner, at = _block(text, at + 1)
            assert text[at : at + 1] == "}", "a block is not closed"
            found.append((tuple(words), inner))
            words, at = [], at + 1
        elif sign == "}":
            assert not words, f"words before }} at character {at}"
            return found, at
        else:
            word, at = _quoted(text, at) if sign in "\"'" else _plain(text, at)
            words.append(word)
    assert not words, "the last directive has no end"
    return found, at


def _quoted(text: str, at: int) -> tuple[str, int]:
    quote, word, at = text[at], "", at + 1
    while text[at] != quote:
        part, at = _sign(text, at)
        word += part
    assert text[at + 1] in f"{SPACE};{{)", f"something sticks to the quote at character {at}"
    return word, at + 1


def _plain(text: str, at: int) -> tuple[str, int]:
    word = ""
    while text[at] not in f"{SPACE};{{" or text[at - 1 : at + 1] == "${":
        part, at = _sign(text, at)
        word += part
    return word, at


def _sign(text: str, at: int) -> tuple[str, int]:
    if text[at] == "\\":
        return ESCAPES.get(text[at + 1], text[at : at + 2]), at + 2
    return text[at], at + 1
