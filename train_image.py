"""Train an image model: `python train_image.py model=flow noise=knn k=4 data=cifar10-jpeg.zip`."""

from immiscible_policy.commands.train_image import main

if __name__ == "__main__":
    main()
