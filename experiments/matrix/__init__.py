"""The matrix runner and the table: what experiments/run_matrix and experiments/inspect do."""
