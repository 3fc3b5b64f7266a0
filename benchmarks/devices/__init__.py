"""What several devices make of a step: links between them, what to expect, and the one link that is measured here."""
