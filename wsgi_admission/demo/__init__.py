"""The example site that the README starts."""
