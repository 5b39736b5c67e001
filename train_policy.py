"""Train a diffusion policy: `python train_policy.py noise=knn k=2 seed=0..2`."""

from immiscible_policy.commands.train_policy import main

if __name__ == "__main__":
    main()
