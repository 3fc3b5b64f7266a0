"""What happens in and around one timed process. Knows nothing of reports."""
