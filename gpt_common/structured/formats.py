"""What `format` of a JSON schema asks of a string, to the letter.

llguidance's own patterns of dates and times know neither leap years nor when a leap second may be; those of the others
are exact, but for the length of a host name.
"""

from __future__ import annotations

from typing import Any

_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
"""Years that have a 29 February, 0000 among them, as the Gregorian calendar reaches back."""
_DATE = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|"
    rf"02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"

OWN = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
"""RFC 3339 without leap seconds, in capitals."""
EXACT = ("duration", "email", "ipv4", "ipv6", "uri", "uuid")
"""llguidance's own."""
LONGEST_HOST_NAME = 253


def without_format(node: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """A schema whose `format` is known, with what llguidance knows of it; and the pattern that says the rest."""
    name = node.get("format")
    if name == "hostname":
        return {**node, "maxLength": min(LONGEST_HOST_NAME, node.get("maxLength", LONGEST_HOST_NAME))}, None
    if name in OWN:
        return {key: value for key, value in node.items() if key != "format"}, OWN[name]
    return node, None


KNOWN = (*sorted(OWN), *EXACT, "hostname")
