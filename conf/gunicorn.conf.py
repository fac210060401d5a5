"""gunicorn in front of a site with expensive endpoints: two web workers, and one process that replays.

Start it with ``gunicorn -c conf/gunicorn.conf.py MODULE:APP``.  Every setting may be changed; what matters here
is the call at the end.
"""

import os

from wsgi_admission.integrations.gunicorn import install

bind = os.environ.get("BIND", "127.0.0.1:8000")
worker_class = "gthread"
workers = 2  # those that answer; the processes that replay come on top
threads = 8
timeout = 60  # seconds; longer than the longest request that runs at once
graceful_timeout = 30  # seconds for what runs when the server stops or reloads
# Two servers of one user would fight over the control socket's path.
control_socket_disable = True

install(globals(), os.environ.get("ADMISSION_CONFIG", "conf/admission.ini"))
