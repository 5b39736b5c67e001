"""Train a diffusion policy: `python train_policy.py noise=knn k=2 seed=0..2`."""

from immiscible_policy.training.command import main

if __name__ == "__main__":
    main()
