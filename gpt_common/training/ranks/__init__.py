"""Several processes that train one model: what they agree on, and how they notice that one of them is gone."""
