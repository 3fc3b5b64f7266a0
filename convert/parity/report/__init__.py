"""What a climb shows: on the console and as a page."""
