"""Many runs from one file: a queue that goes on where it was stopped, and a table of what they reached."""
