"""What every command stands on: settings, files, models, metrics, console, Ray, Hydra. Imports nothing else of ours."""
