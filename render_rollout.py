"""Render rollouts of a checkpoint as a video: `python render_rollout.py checkpoint=PATH out=rollout.mp4`."""

from immiscible_policy.commands.render_rollout import main

if __name__ == "__main__":
    main()
