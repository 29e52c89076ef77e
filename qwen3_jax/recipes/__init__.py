"""Recipes: lists of ordinary configurations and commands that one command runs, each taking what those before it made.

`config` reads a recipe, `runner` runs its phases. `claims` makes findings of what they wrote, `report_claims` has the report's
claims, and `page` draws them.
"""
