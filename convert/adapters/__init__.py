"""Adapters of other libraries, in and out, and merged into their base. Small enough to be held in memory."""
