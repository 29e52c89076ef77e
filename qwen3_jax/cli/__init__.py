"""The `qwen3` command; `qwen3_jax.cli.main` dispatches, and each command is a module with `main(argv, prog)`."""
