"""What a training is made of: a recipe for robots and one for images."""
