"""GPT-2's bytes as visible characters, and which tokens continue a word where words are marked at their beginning."""

from __future__ import annotations

VISIBLE_BYTES = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
OTHER_BYTES = tuple(byte for byte in range(256) if byte not in VISIBLE_BYTES)
CHARACTER_OF_BYTE = {byte: chr(byte) for byte in VISIBLE_BYTES} | {
    byte: chr(0x100 + index) for index, byte in enumerate(OTHER_BYTES)
}
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}
SPACE_MARK = "▁"
UNSPACED = (  # scripts that put no space between words: there a token begins a word of its own
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x303F), (0x3041, 0x30FF), (0x31C0, 0x4DBF)),
    *((0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF)),
)
UNSPACED_LEAD_BYTES = frozenset({*range(0xE3, 0xEA), *range(0xEE, 0xF8)})  # kana, ideographs, emoji


def token_bytes(token: str) -> bytes | None:
    """Return the bytes that a byte-level token stands for; None if it is not one."""
    try:
        return bytes(map(BYTE_OF_CHARACTER.__getitem__, token))
    except KeyError:
        return None


def byte_level_continues(token: str) -> bool:
    """Whether a byte-level token continues a word: see ``text_continues``; so do bytes from within a character."""
    data = token_bytes(token)
    if not data:
        return False
    if 0x80 <= data[0] < 0xC0:
        return True
    text = data.decode(errors="ignore")
    return text_continues(text) if text else _lead_byte_continues(data[0])


def metaspace_continues(token: str) -> bool:
    """Whether a token of a vocabulary with "▁" before words continues a word; byte pieces ("<0xE4>") by their byte."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        byte = int(token[3:5], 16)
        return 0x80 <= byte < 0xC0 or _lead_byte_continues(byte)
    return not token.startswith(SPACE_MARK) and text_continues(token)


def text_continues(text: str) -> bool:
    """Whether text continues the word before it: no white space before it, letters or digits in it.

    Punctuation alone begins a word, and so does every token of a script that puts no spaces between words, as a Chinese
    character does in BERT; "(the" counts as one word.
    """
    if text[:1].isspace():
        return False
    first = next((character for character in text if character.isalnum()), "")
    return bool(first) and not any(low <= ord(first) <= high for low, high in UNSPACED)


def _lead_byte_continues(byte: int) -> bool:
    if byte < 0x80:
        return text_continues(chr(byte))
    return byte not in UNSPACED_LEAD_BYTES
