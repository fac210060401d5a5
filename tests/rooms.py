"""Waiting rooms for the tests: a desk whose pages can be looked at, and texts that try to break out of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from werkzeug.serving import make_server

from tests.test_api import Desk
from wsgi_admission.config import PagesOptions, Tier, Tiers
from wsgi_admission.tiers import Resolver
from wsgi_admission.web.api import Api

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


class Room(Desk):
    """A desk whose pages are those of a site.

    :param hint: what tier ``anonymous`` adds.
    """

    def __init__(self, hint: str = "", **pages: Any) -> None:
        super().__init__()
        order = (Tier(name="donor"), Tier(name="registered"), Tier(name="anonymous", hint=hint))
        self.config = replace(self.config, pages=PagesOptions(**pages), tiers=Tiers(order=order))
        self.api = Api(
            self.store, self.config, Resolver([tier.name for tier in order]), lambda: self.load,
            slots_in_use=lambda: self.in_use, clock=lambda: self.now, uniform=lambda: 0.5,
        )  # fmt: skip


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an app from a thread; yield its URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    # Its end waits for its next look at whether it is to end.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


#: What runs or shows where a text is not kept apart from the page around it.
HOSTILE = (
    "<script>hacked=1</script>",
    "</script><script>hacked=1</script>",
    "<SCRIPT>hacked=1</SCRIPT>",
    "<script/src=data:,hacked=1></script>",
    "<<script>hacked=1//<</script>",
    "<img src=x onerror=hacked=1>",
    "<img/src=x/onerror=hacked=1>",
    "<IMG SRC=`x` onerror=hacked=1>",
    "<svg onload=hacked=1>",
    "<svg/onload=hacked=1>",
    "<svg><script>hacked=1</script></svg>",
    "<svg><animate onbegin=hacked=1 attributeName=x dur=1s>",
    "<math><mi xlink:href='javascript:hacked=1'>x</mi></math>",
    "<body onload=hacked=1>",
    "<iframe src=javascript:hacked=1></iframe>",
    "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
    "<object data=javascript:hacked=1></object>",
    "<embed src=javascript:hacked=1>",
    "<a href=javascript:hacked=1>click</a>",
    "<a href=' javascript:hacked=1'>click</a>",
    "<form action=javascript:hacked=1><button>x</button></form>",
    "<button formaction=javascript:hacked=1>x</button>",
    "<input autofocus onfocus=hacked=1>",
    "<details open ontoggle=hacked=1>",
    "<video><source onerror=hacked=1></video>",
    "<audio src=x onerror=hacked=1>",
    "<marquee onstart=hacked=1>",
    "<meta http-equiv=refresh content='0;url=javascript:hacked=1'>",
    "<base href=//evil.example/>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>*{display:none}</style>",
    "</style><script>hacked=1</script>",
    "</title><script>hacked=1</script>",
    "</textarea><script>hacked=1</script>",
    "<!--<script>hacked=1</script>-->",
    "--><script>hacked=1</script>",
    "]]><script>hacked=1</script>",
    '"><script>hacked=1</script>',
    "'><script>hacked=1</script>",
    '" onmouseover=hacked=1 x="',
    "' onmouseover='hacked=1",
    '" autofocus onfocus=hacked=1 "',
    "javascript:hacked=1",
    "{{ 7 * 7 }}{% raw %}",
    "{{ ''.__class__ }}",
    "${hacked=1}",
    "&lt;script&gt;hacked=1&lt;/script&gt;",
    "&#60;script&#62;hacked=1&#60;/script&#62;",
    "\u2028hacked=1\u2029<script>hacked=1</script>",
    "\ufeff<script>hacked=1</script>\u202e",
)
