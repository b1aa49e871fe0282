"""Flavors of mlflow-autolog, one per framework. Loaded by entry point, so that this module needs no code."""
