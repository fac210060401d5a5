"""A line in front of the expensive endpoints of a WSGI app."""

__version__ = "0.1.0"
