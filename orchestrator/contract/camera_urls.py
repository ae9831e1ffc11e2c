"""What a camera URL must not hold, whatever its scheme: it goes to the Runner as it is.

Who writes commands decides what is in them. A host that begins with "-" is an option to a program that
gets it as an argument; what cannot be seen makes one host look like another.
"""

import re

# For a character class: what Unicode calls ignorable when it is shown (soft hyphen, zero width, bidi
# controls, fillers, variation selectors, tags), annotation marks, and the braille blank.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)

# Before a host: user and password. If what is before the path is no host with a port, the password may
# hold a "/".
HOST_AND_PATH = r"(?:[^/?#]*@)?(?:\[[^/?#@]*\]|[^/?#:@\[\]]+)(?::[0-9]*)?/"
USER_INFO = rf"(?:[^/?#]*@|(?!{HOST_AND_PATH})[^/?#]*/[^?#]*@)?"
ZONED_ADDRESS = r"\[[^\]%]+%25[A-Za-z0-9._~-]+\]"  # RFC 6874, the only "%" that a host needs
PERCENT_IN_HOST = rf"(?!{ZONED_ADDRESS})(?:\[[^/?#@%]*|[^/?#@:\[%]*)%"
UNSAFE_HOST = re.compile(rf"[^/?#]*://{USER_INFO}(?:-|{PERCENT_IN_HOST})[^/?#@]*(?:[/?#]|$)")


def has_unsafe_host(url: str) -> bool:
    """Return whether a host begins with "-", or hides characters behind percent signs."""
    return UNSAFE_HOST.match(url) is not None
