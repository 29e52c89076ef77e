"""The generated tasks of general reinforcement learning, by what they train; all of them are in `general_tasks`."""
