"""Arithmetic only: no I/O, no clock, no thread.  Values in, values out."""
