"""A package, so that its server ends with the last of its tests, not with the session."""
