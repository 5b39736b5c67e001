"""Networks: the 1-D temporal U-Net, and the encoders of camera images."""
