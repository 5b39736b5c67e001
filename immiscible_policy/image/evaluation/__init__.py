"""How good generated images are: Fréchet distances, CLIPScore, and curves of them over training."""
