"""The papers' tables: trainings within a time budget, results, and both side by side."""
