"""Train an image model: `python train_image.py model=flow noise=knn k=4 data=cifar10-jpeg.zip`."""

from immiscible_policy.image.command import main

if __name__ == "__main__":
    main()
