"""From raw samples to what a person reads: findings, table, page, pictures, JSON."""
