"""Who is asking, on the demo site: whoever the request says it is.

FOR THE DEMO ONLY.  Anybody can claim any tier here with a header or a cookie, and any client's name, and so see that
client's tickets.  A real resolver asks the site's own accounts: the session that the site has checked, a key that it
has issued.  Never copy this one.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

TIERS = ("donor", "registered", "anonymous")
COOKIE = "demo_tier"


def tier_of(environ: dict[str, Any]) -> tuple[str, str | None]:
    """Return the claimed tier, ``anonymous`` without a claim, and the claimed client or None.

    The tier is taken from the first of these that names one: the header X-Demo-Tier, the query parameter and the
    cookie ``demo_tier``.  The client is what the header X-Demo-Client says.  FOR THE DEMO ONLY: see above.
    """
    claims = [environ.get("HTTP_X_DEMO_TIER", ""), *parse_qs(environ.get("QUERY_STRING", "")).get(COOKIE, ())]
    claims.append(_cookie(environ.get("HTTP_COOKIE", "")))
    tier = next((claim for claim in claims if claim in TIERS), "anonymous")
    return tier, environ.get("HTTP_X_DEMO_CLIENT") or None


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""
