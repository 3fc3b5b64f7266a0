"""Conversations and instructions as data: what is read, how it is written out, and which of its tokens count."""
