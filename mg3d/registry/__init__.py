"""MLflow's registry: what becomes a version, which version is champion, and what each came from."""
