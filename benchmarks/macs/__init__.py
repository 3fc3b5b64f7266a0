"""What the owner of a Mac measures with one command and may share: the parts, their record, and the table of all."""
