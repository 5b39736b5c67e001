"""Measure how good the images of a run's checkpoints are: `python eval_image.py run=runs/mine`."""

from immiscible_policy.commands.eval_image import main

if __name__ == "__main__":
    main()
