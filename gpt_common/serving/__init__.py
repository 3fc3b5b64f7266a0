"""A model as a server: OpenAI's API over waiting requests that are answered together, and a page to look at models."""
