# make setup   a virtual environment in .venv with everything the project needs
# make demo    train vanilla and KNN noise on the embedded demonstrations, write a report, render a rollout
# make look    render the policy that ships with the project: runs/look.gif
# make test    lint, types, and the default tests
# make docs    the site, from docs/ and the docstrings: site/index.html
# make check   lint, types, and which room imports which; make tests the tests alone
# make peers   LeRobot, gym-pusht, torchcfm and torch-fidelity in .venv-peers, for `python -m benchmarks` (about 8 GB)
# make original what the original Diffusion Policy trains PushT with, in .venv-original, on Python 3.11 (about 3 GB)
# make lerobot LeRobot 0.6.1 with this project and its plugin in .venv-lerobot, on Python 3.12 (about 6 GB)

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := runs/demo
TRAIN := $(RUN) train_policy.py experiment=demo resume=true

.PHONY: setup look demo test tests check slow docs lock gpu gpu-images peers lock-peers lock-docs lerobot lock-lerobot original \
	lock-original

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, PYTHON=... names it")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

look: setup
	$(RUN) render_rollout.py checkpoint=pretrained episodes=6 size=160 speed=2 out=runs/look.gif

# Both arms train side by side, one core each; what vanilla says goes to a log.
demo: setup
	mkdir -p $(DEMO)
	$(TRAIN) noise=vanilla out=$(DEMO)/vanilla > $(DEMO)/vanilla.log 2>&1 & vanilla=$$!; \
	$(TRAIN) noise=knn k=2 out=$(DEMO)/knn_k2 || { kill $$vanilla; exit 1; }; \
	wait $$vanilla || { tail -n 1 $(DEMO)/vanilla.log; exit 1; }
	$(RUN) compare_policies.py a=$(DEMO)/knn_k2 b=$(DEMO)/vanilla report=$(DEMO)/report.html
	$(RUN) render_rollout.py checkpoint=$(DEMO)/knn_k2 out=$(DEMO)/rollout.mp4
	@echo "open $(DEMO)/report.html and $(DEMO)/rollout.mp4"

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

test: setup
	$(MAKE) --no-print-directory -j 2 check tests

tests: setup
	SDL_VIDEODRIVER=dummy OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --dist worksteal

slow: docs setup
	SDL_VIDEODRIVER=dummy OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m slow

# The site is built in an environment of its own, which needs nothing of the project: docstrings are read, not imported.
DOCS := .venv-docs
DOCS_PACKAGES := 'mkdocs-material>=9.8,<10' 'mkdocstrings[python]>=1'

docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	@echo "open site/index.html"

$(DOCS)/.installed: requirements-docs.lock
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	touch $@

# Make it anew from what fits together today, and pin it, for pip, without any index address.
lock-docs:
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check $(DOCS_PACKAGES)
	$(DOCS)/bin/python -m pip freeze --all --exclude pip --exclude setuptools > requirements-docs.lock
	touch $(DOCS)/.installed

# Pin what the current environment holds (after upgrading it by hand), for pip, without any index address.
lock: setup
	$(RUN) -m pip freeze --exclude-editable --exclude pip --exclude setuptools | sed -E 's/\+[a-z0-9.]+$$//' > requirements.lock

# Policies, selectors and environments on a GPU, most wanted first; `make gpu DEVICE=cpu QUICK=quick=true` tries the commands out.
DEVICE := cuda
QUICK :=
MEASURE := $(RUN) -m benchmarks
RESULTS := runs/benchmarks/$(DEVICE)

gpu: setup
	$(if $(filter cuda,$(DEVICE)),$(RUN) -m pytest -q -m gpu)
	$(MEASURE) selection device=$(DEVICE) out=$(RESULTS) $(QUICK)
	$(MEASURE) step device=$(DEVICE) scale=paper seeds=2 widths=64,128,256 out=$(RESULTS) $(QUICK)
	$(MEASURE) sampling device=$(DEVICE) scale=paper envs=1,56 steps=1,10,100 out=$(RESULTS) $(QUICK)
	$(MEASURE) env out=$(RESULTS) $(QUICK)

# The papers' flow-matching networks on CIFAR-10 at 32 x 32, plain noise and KNN, with FID; the same command resumes it.
# FID needs the extra fid and Inception's weights, see docs/images.md.
CIFAR10 := cifar10.zip

gpu-images: setup
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[fid]'
	$(RUN) train_image.py experiment=figure5 arms=flow_vanilla,flow_knn_k4 scale=paper seed=0 steps=20000 checkpoint_every=5000 \
		data=$(CIFAR10) device=$(DEVICE) evaluation.features=inception evaluation.samples=50000 out=$(RESULTS)/figure5

# What the benchmarks stand beside. The lock is for Python 3.11; LeRobot and gym-pusht need older libraries than ours.
PEERS := .venv-peers
PEER_PACKAGES := lerobot==0.4.4 gym-pusht 'pymunk<7' shapely torchcfm torch-fidelity

peers: $(PEERS)/.installed

$(PEERS)/.installed: requirements-peers.lock
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-peers.lock
	touch $@

# Make the peers' environment anew from what fits together today, and pin it, for pip, without any index address.
lock-peers:
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(PEER_PACKAGES)
	$(PEERS)/bin/python -m pip freeze --all --exclude pip | sed -E 's/\+[a-z0-9.]+$$//' > requirements-peers.lock
	touch $(PEERS)/.installed

# The LeRobot of today, which needs Python 3.12, with this project and its plugin as a user has them.
LEROBOT := .venv-lerobot
LEROBOT_PYTHON ?= python3.12
LEROBOT_PACKAGES := 'lerobot[training,diffusion,pusht,multi_task_dit,smolvla,pi]==0.6.1' hatchling hatch-fancy-pypi-readme editables
OURS := -e . -e ./lerobot_policy_immiscible

lerobot: $(LEROBOT)/.installed

$(LEROBOT)/.installed: requirements-lerobot.lock pyproject.toml lerobot_policy_immiscible/pyproject.toml
	$(LEROBOT_PYTHON) -m venv $(LEROBOT)
	$(LEROBOT)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lerobot.lock
	$(LEROBOT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(OURS)
	touch $@

# Make it anew from what fits together today, and pin it, for pip, without any index address.
lock-lerobot:
	$(LEROBOT_PYTHON) -m venv --clear $(LEROBOT)
	$(LEROBOT)/bin/python -m pip install --quiet --disable-pip-version-check $(LEROBOT_PACKAGES) $(OURS)
	$(LEROBOT)/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed -E 's/\+[a-z0-9.]+$$//' > requirements-lerobot.lock
	touch $(LEROBOT)/.installed

# What the original Diffusion Policy trains and rolls out low-dimensional PushT with. Its environments need gym 0.21, which
# Python 3.12 cannot import, newer pip cannot install, and newer setuptools cannot build. This project needs nothing more.
ORIGINAL := .venv-original
ORIGINAL_PYTHON ?= python3.11
ORIGINAL_PACKAGES := torch scipy diffusers==0.35.0 'zarr<3' 'numcodecs<0.16' hydra-core einops dill 'wandb<0.20' tqdm \
	numba threadpoolctl av pandas gym==0.21.0 'pymunk<7' pygame shapely opencv-python-headless scikit-image \
	'matplotlib<3.9'
ORIGINAL_INSTALL = PIP_CONSTRAINT=$(ORIGINAL)/build.txt $(ORIGINAL)/bin/python -m pip install --quiet \
	--disable-pip-version-check

define original-venv
$(ORIGINAL_PYTHON) -m venv --clear $(ORIGINAL)
printf 'setuptools<66\nwheel<0.39\n' > $(ORIGINAL)/build.txt
$(ORIGINAL_INSTALL) 'pip<24.1'
endef

original: $(ORIGINAL)/.installed

$(ORIGINAL)/.installed: requirements-original.lock
	$(original-venv)
	$(ORIGINAL_INSTALL) -r requirements-original.lock
	$(ORIGINAL_INSTALL) --no-deps -e .
	touch $@

# Make it anew from what fits together today, and pin it, for pip, without any index address.
lock-original:
	$(original-venv)
	$(ORIGINAL_INSTALL) $(ORIGINAL_PACKAGES)
	$(ORIGINAL)/bin/python -m pip freeze --all --exclude pip | sed -E 's/\+[a-z0-9.]+$$//' > requirements-original.lock
	touch $(ORIGINAL)/.installed
