# Everything is set up by the first call, in .venv; the next ones start at once. `make help` lists the targets.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base
READY := $(VENV)/.ready
UV := $(shell command -v uv 2>/dev/null)
EXTRAS := dev,qlora,judge,maths,bench
RECENT := import sys; sys.exit(sys.version_info < (3, 10))
WANTED := Install Python 3.10 or newer, or name one that you have: make PYTHON=python3.12

# Two workers with one thread each: on two busy cores, two PyTorch threads are many times slower than one
export OMP_NUM_THREADS ?= 1
# uv, where it is there, takes PyTorch's CPU build if there is no GPU; pip what its index has (see CONTRIBUTING.md)
export UV_TORCH_BACKEND ?= auto
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help setup demo test check shipped ablations ablations-all bench bench-gpu gpu-check prep outputs readme sync check-outputs docs dist clean

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 chooses the interpreter (3.10 or newer), WORKERS=N the number of parallel tests."

FLAGS = -q -c constraints.txt -e '$(1)'
install = @$(if $(UV),$(UV) pip install --python $(BIN)/python $(FLAGS) ||) $(BIN)/python -m pip install $(FLAGS)

setup: $(READY)  ## Make .venv and install the package with all its tools (the other targets do it when they need it)

$(BASE): settings.ini setup.py constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "make: there is no '$(PYTHON)' here. $(WANTED)" >&2; exit 1; }
	@$(PYTHON) -c '$(RECENT)' || \
	  { echo "make: '$(PYTHON)' is $$($(PYTHON) -V 2>&1). $(WANTED)" >&2; exit 1; }
	@$(BIN)/python -c '$(RECENT)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || \
	  { echo "make: '$(PYTHON)' cannot make a virtual environment (Debian, Ubuntu: install python3-venv)" >&2; exit 1; }
	@echo "Installing into $(VENV): once, and PyTorch is large, so this takes minutes ..."
	@[ -n "$(UV)" ] || [ "$$(uname)" != Linux ] || command -v nvidia-smi >/dev/null || \
	  echo "(No GPU here. With uv installed, PyTorch's CPU build is taken: 0.2 GB to fetch instead of 2.7.)"
	$(call install,.)
	@touch $@

$(READY): $(BASE)
	@echo "Installing what tests, checks and measurements need besides, once ..."
	$(call install,.[$(EXTRAS)])
	@touch $@

demo: $(BASE)  ## Train the small policy that ships with the package and report on it, in runs/demo
	@env -u OMP_NUM_THREADS $(BIN)/ivgr demo --out runs/demo

test: $(READY)  ## Run every notebook and everything in tests/, in one pytest run
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=8 --durations-min=15 nbs tests

check: $(READY)  ## The same, but a notebook also fails where it gives other outputs than the stored ones
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=8 --durations-min=15 --check-outputs nbs tests

shipped: $(BASE)  ## Make the policy that ships from nothing, and put it into the package when it meets its goals (an hour of one core; goes on where it stopped)
	@$(BIN)/python -c "from ivgr.studies.shipped import make_shipped; make_shipped('runs/shipped')"
	@cp runs/shipped/start.jsonl nbs/results/start.jsonl

ablations: $(BASE)  ## Make the main ablations again, from nothing, in runs/ablations (under two hours on two cores; goes on where it stopped)
	@$(BIN)/ivgr ablate --study components mistaken teacher rollouts --results runs/ablations

ablations-all: $(BASE)  ## The same with every study: judges, variants, the map
	@$(BIN)/ivgr ablate --study components mistaken teacher judge map variants rollouts --results runs/ablations

bench: $(READY)  ## Measure steps on this CPU beside the plain path and TRL, into nbs/results (hours; goes on where it stopped)
	@$(BIN)/ivgr bench --suite goals sweeps --rounds 2 --out nbs/results/bench.jsonl

bench-gpu: $(READY)  ## The same on a GPU with policies of 3, 7 and 8 billion random weights (80 GB of memory)
	@env -u OMP_NUM_THREADS $(BIN)/ivgr bench --suite gpu --rounds 3 --out nbs/results/bench_gpu.jsonl

gpu-check: $(READY)  ## Everything that only a GPU can tell, in 8 minutes, into nbs/results (goes on where it stopped)
	@env -u OMP_NUM_THREADS $(BIN)/python tools/gpu_check.py

prep: $(READY)  ## Before a commit: export the modules, test, clean the notebooks, write README.md
	@$(BIN)/nbdev_export
	@$(MAKE) --no-print-directory test
	@$(BIN)/nbdev_clean
	@$(BIN)/python tools/readme.py

outputs: $(READY)  ## Run the notebooks and store what they print and draw (NB=nbs/01_boxes.ipynb for one)
	@$(BIN)/python tools/outputs.py --workers $(WORKERS) $(NB)

check-outputs: $(READY)  ## Run the notebooks again and fail where that gives other outputs than the stored ones
	@$(BIN)/python tools/outputs.py --check --workers $(WORKERS) $(NB)

readme: $(READY)  ## Write README.md from nbs/index.ipynb
	@$(BIN)/python tools/readme.py

sync: $(READY)  ## Fail unless notebooks, modules and README.md, as committed, agree
	@$(BIN)/python tools/sync.py

docs: $(READY)  ## Build the website in _docs/, by Quarto where it is installed, and look for broken links
	@$(BIN)/python tools/docs.py --workers $(WORKERS)

dist: $(READY)  ## Build the source archive and the wheel in dist/
	@rm -rf dist
	@$(BIN)/python -m build -q
	@ls dist

clean:  ## Remove what the other targets made, but not runs/
	rm -rf $(VENV) dist build _docs _proc *.egg-info .pytest_cache .hypothesis
