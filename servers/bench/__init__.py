"""Developer benches of the attention backends: whole engine steps, and one layer alone."""
