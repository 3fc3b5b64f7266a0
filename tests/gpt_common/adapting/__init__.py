"""Adapters, before there is a framework."""
