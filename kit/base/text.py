"""Text of others in messages: short, and harmless to a terminal."""

import unicodedata


def shorten(text: str, length: int = 60) -> str:
    """Return a text with its middle left out where it is longer than `length` characters."""
    if len(text) <= length:
        return text
    end = length // 4
    return f"{text[: length - end]}[... {len(text) - length:,} more ...]{text[-end:]}"


def counted(number: int, what: str) -> str:
    """Return a number with what it counts: 1 seed, 6 seeds."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def printable(text: str) -> str:
    r"""Return a text with control characters written out, as \x1b: they would steer a terminal."""
    return "".join(
        character if _is_harmless(character) else character.encode("unicode_escape").decode()
        for character in text
    )


def _is_harmless(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character)[0] != "C"
