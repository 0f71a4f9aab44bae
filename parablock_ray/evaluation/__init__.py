"""Judging a model: `load_tasks` reads what tasks need, `evaluate` asks a model and scores it.

tasks = load_tasks(config.evaluation.tasks, context)         # evaluation/tasks.py: every task by name
results = [evaluate(model, task) for task in tasks]          # as often as wanted
"""
