"""Thin adapters to servers and frameworks; nothing imports them."""
