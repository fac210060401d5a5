"""A line in front of the expensive endpoints of a WSGI app."""

from wsgi_admission.config import Config, load_config
from wsgi_admission.errors import (
    AdmissionError,
    ConfigError,
    FinalTicket,
    GoneTicket,
    LeaseLost,
    RequestRefused,
    StoreError,
    StoreMismatch,
    StoreRefused,
    StoreUnavailable,
    UnknownTicket,
)
from wsgi_admission.middleware import AdmissionMiddleware
from wsgi_admission.progressing import cancelled, progress

__version__ = "0.1.0"

__all__ = [
    "AdmissionError",
    "AdmissionMiddleware",
    "Config",
    "ConfigError",
    "FinalTicket",
    "GoneTicket",
    "LeaseLost",
    "RequestRefused",
    "StoreError",
    "StoreMismatch",
    "StoreRefused",
    "StoreUnavailable",
    "UnknownTicket",
    "__version__",
    "cancelled",
    "load_config",
    "progress",
]
