"""The hospital's side: its images, what it forgets, how it unlearns, and what may leave it."""
