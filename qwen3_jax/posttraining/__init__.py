"""Post-training by reinforcement: rewards of answers, and the tasks of general reinforcement learning."""
