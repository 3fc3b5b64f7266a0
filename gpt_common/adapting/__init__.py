"""Adapters: a few trained numbers beside each frozen matrix. What they are called, where they sit, how they begin.

Nothing here knows a network: a network is the shapes of its tensors by name, from network/parameters.py.
"""
