"""What a run's files say: curves and facts, and the pages, pictures and tables that show them."""
