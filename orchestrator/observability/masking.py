"""What is shown of a text or of bytes that others wrote: no secret, and only printable characters.

Drivers and servers quote what they were given, and where a credential ends in their text depends on who
wrote it. So a text is shown up to the first sign of a secret, and nothing after it. A record's key and
the values of its headers are shown only where their form is known to be harmless.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from itertools import islice

MASK = "***"
MAX_TEXT = 8_192  # characters of a text that are looked at, and shown

# As they are, escaped in JSON, in a URL (perhaps twice), and in HTML.
COLON = r"(?::|%(?:25){0,4}3a|\\{1,8}u003a|&\#58;|&colon;)"
SLASH = r"(?:\\{0,8}/|%(?:25){0,4}2f|\\{1,8}u002f|&\#47;|&sol;)"
EQUALS = r"(?:=|%(?:25){0,4}3d|\\{1,8}u003d|&\#61;|&equals;)"
QUOTE = r"(?:[\\\"'`]|%(?:25){0,4}2[27]|&(?:quot|apos|\#34|\#39);)"
AT = r"(?:@|%(?:25){0,4}40|\\{1,8}u0040|&\#64;|&commat;)"

WORDS = (
    r"(?:pass(?:word|wd|phrase|code|wort|key)|pass(?![a-z])|pwd|psw|pw(?![a-z])|secret|token|credential"
    r"|cookie|authori[sz]ation(?!_failed)|signature|sig(?![a-z])|(?:api|access|private|account|shared)[-_.\s]?key"
    r"|camera[-_]?url|database[-_]?url|jaas[-_.]config|пароль|секрет)"
)
NAME = rf"{WORDS}[\w.-]{{0,40}}"
HARMLESS_WORDS = (  # words that follow where no secret does: `password authentication failed`
    r"(?:authentication|authenticated|auth|supplied|provided|given|set|file|retrieved|must|may|cannot|can"
    r"|are|was|were|has|have|had|does|do|of|for|in|on|or|and|not|expired|required|missing|invalid|hash"
    r"|encryption|verification|method|prompt|from|to|with|change|callback|login|failed|check)\b"
)
SIGNS = (
    rf"{COLON}{SLASH}{{2}}",  # a URL
    rf"{NAME}{QUOTE}{{0,4}}[\s)\]]{{0,4}}(?:{COLON}|{EQUALS}|[>|]|&gt;)",
    rf"{NAME}{QUOTE}{{1,4}}\s{{0,4}},",  # ('password', 'pw')
    rf"{NAME}\s{{1,4}}{QUOTE}",  # PASSWORD 'pw'
    rf"(?:pass(?:word|wd|phrase)|--?\w{{0,20}}{WORDS})\s{{1,4}}(?!{HARMLESS_WORDS})",
    rf"\b(?:basic|digest|bearer|negotiate|ntlm)\s{{1,4}}(?!{HARMLESS_WORDS})",
    r"-----BEGIN",  # a key
    r"\beyJ(?=[\w-]{8})",  # a JSON Web Token
)
FIND_SIGNS = re.compile("|".join(SIGNS), re.IGNORECASE).finditer
FIND_ATS = re.compile(AT, re.IGNORECASE).finditer
FIND_USER_ENDS = re.compile(f"{COLON}|{SLASH}", re.IGNORECASE).finditer
IS_SECRET_NAME = re.compile(WORDS, re.IGNORECASE).search

# A listener of Kafka as librdkafka names it, and a user as Postgres does.
FIND_HARMLESS = re.compile(
    r"(?<![\w.+-])(?:sasl_)?(?:plaintext|ssl)://(?:[a-z0-9._-]{1,255}|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?"
    r"(?:/(?:bootstrap|\d{1,10}))?(?=:?\s|[,;)\]'\"]|$)"
    r"|\buser \"[\w.@-]{1,63}\"",
    re.IGNORECASE,
).finditer


def mask_text(text: str) -> str:
    """Return the text up to the first sign of a secret, at most MAX_TEXT characters of it."""
    shown = text[:MAX_TEXT]
    end = _first_sign(shown, is_cut=len(text) > MAX_TEXT)
    if end is not None:
        return shown[:end] + MASK
    return text if shown == text else f"{shown}... ({len(text):,} characters)"


def _first_sign(text: str, *, is_cut: bool) -> int | None:
    """Return where the text must end. is_cut: what it was cut from may continue with an '@'."""
    harmless = [found.span() for found in FIND_HARMLESS(text)]

    def signs(found: Iterator[re.Match[str]]) -> Iterator[re.Match[str]]:
        """Leave out those within something harmless; both come in order."""
        spans = iter([*harmless, (len(text) + 1, 0)])
        start, end = next(spans)
        for one in found:
            while one.start() >= end and start <= len(text):
                start, end = next(spans)
            if one.start() < start:
                yield one

    ends = [one.end() for one in islice(signs(FIND_SIGNS(text)), 1)]
    ats = [one.start() for one in signs(FIND_ATS(text))] + [len(text)] * is_cut
    if ats:  # user:password@host, whatever the password holds
        ends.append(_word_start(text, ats[0]))
        ends += [one.end() for one in islice(signs(FIND_USER_ENDS(text, 0, ats[-1])), 1)]
    return min(ends, default=None)


def _word_start(text: str, position: int) -> int:
    return max(text.rfind(space, 0, position) for space in " \t\n") + 1


def mask_value(value: object, name: str = "") -> object:
    """Return a value as JSON can hold it, with every text in it masked. name: its key."""
    if IS_SECRET_NAME(name[:MAX_TEXT]):
        return MASK
    match value:
        case bool() | int() | float() | None:
            return value
        case datetime():
            return value.astimezone(UTC).isoformat()
        case Mapping():
            return {mask_text(str(key)): mask_value(inner, str(key)) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [mask_value(inner) for inner in value]
        case _:
            return mask_text(str(value))


# Where servers are, and who asks them: as libpq, Postgres and librdkafka write it.
ADDRESSES = re.compile(
    r"connection to server (?:at|on) .{1,300}? failed: "
    r"|(?:sasl_)?(?:plaintext|ssl)://[^\s,;)\]]{1,300}:? ?"
    r"|(?:[\w.-]{1,255}|\[[0-9a-f:.]{2,45}\]):\d{1,5}/(?:bootstrap|\d{1,10}):? ?"
    r"|'[\w.-]{1,255}:\d{1,5}'"
    r"|\bipv[46]#\S{1,300}|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b|\[[0-9a-f:]{2,45}\](?::\d{1,5})?",
    re.IGNORECASE,
)
NAMES = re.compile(r"\b(user|role|database|host name|host) \"[^\"]{0,255}\"")


def without_addresses(text: str | None) -> str | None:
    """Return a text without the addresses of servers and the names of users in it."""
    return text and NAMES.sub(r"\1 ...", ADDRESSES.sub("", text[:MAX_TEXT]))


def printable(text: str) -> str:
    """Return the text with everything escaped that a terminal would not show as it is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


UUID_TEXT = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def shown_bytes(value: bytes, harmless: re.Pattern[bytes] = UUID_TEXT) -> str:
    """Return bytes of a harmless form as text; of others how many they are, and the start of a hash."""
    if harmless.fullmatch(value):
        return value.decode()
    return f"{len(value):,} bytes, SHA-256 {sha256(value).hexdigest()[:8]}"
