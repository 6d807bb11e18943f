"""Running a site: what has to be right before it starts, and what keeps it running."""
