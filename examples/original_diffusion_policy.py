"""Immiscible noise in the original Diffusion Policy: train any of its workspaces, with no edit to its files.

Run it in a checkout of Diffusion Policy, in its environment, with this project installed there:

python .../examples/original_diffusion_policy.py --config-name=train_diffusion_unet_lowdim_workspace +noise=knn +k=4

It does what the checkout's own train.py does, and has one line more. `noise` and its options are taken out of the
configuration before the workspace sees it.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from immiscible_policy.noise import make_selector, selector_options
from immiscible_policy.plugins.diffusion_policy import use_noise

sys.path.insert(0, str(Path.cwd()))
OmegaConf.register_new_resolver("eval", eval, replace=True)  # its configuration files compute sizes with it


@hydra.main(version_base=None, config_path=str(Path("diffusion_policy", "config").resolve()))
def main(config: DictConfig) -> None:
    """Train the workspace that the configuration names."""
    with open_dict(config):
        name = config.pop("noise", "knn")
        options = {key: config.pop(key) for key in selector_options(name) if key in config}
    OmegaConf.resolve(config)
    workspace = hydra.utils.get_class(config._target_)(config)
    use_noise(workspace.model, make_selector(name, **options), step=lambda: workspace.global_step)
    workspace.run()


if __name__ == "__main__":
    main()
