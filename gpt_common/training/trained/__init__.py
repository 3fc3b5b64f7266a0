"""A model that was trained before, as other commands take it up: asked questions, or given more tokens."""
