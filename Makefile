# Each target sets itself up: .venv is made when it is missing or older than the project files.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-long test-oldest test-newest lint simulate chaos postgres-test sbom cluster-test slurm-test bench gpu-check docs wheel wheel-test lock lock-cuda lock-cpu clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "isweep needs Python 3.11 to 3.13; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip<27'
	$(BIN)/python -m pip install --quiet --editable '.[demo,formats,medical]' --group dev --constraint constraints.txt
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/isweep run digits-demo
	@printf '%s\n' '' 'Open that page in a browser. Then, from this folder:' \
	  '  source $(BIN)/activate        # once per terminal: from now on the command is isweep' \
	  '  isweep fit digits-demo        # what was found, with intervals' \
	  '  isweep ui digits-demo         # MLflow, with every trial' \
	  '  isweep run demo               # eight sets of images, four of them medical' \
	  '  isweep init ./my-images       # a sweep file for your own images'

# Four workers, since much of a test is waiting; a file stays whole, since its tests share fixtures; the long ones
# come first (tests/conftest.py), and files that share a Ray cluster go to one worker (tests/shared_ray.py). Hundreds
# of processes import the same modules, so their bytecode is kept also where the environment says otherwise.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP)
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not chaos and not long"

# Tests that take seconds of processor time and whose promise a quicker test holds too, or that repeat one promise for
# many inputs: simulations of levels and powers, further networks of the study, further layouts of a dataset, the
# tutorial, MLflow's page, private clusters. Run them before a release; they also run every week.
test-long: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "long and not chaos"

# The same with the oldest and with the newest releases that pyproject.toml allows, in environments of their own.
test-oldest test-newest: export PYTHONDONTWRITEBYTECODE :=
test-oldest test-newest: test-%:
	test -x $(VENV)-$*/bin/python || $(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet --editable '.[demo,formats,medical]' --group dev $(if $(filter oldest,$*),--constraint constraints-oldest.txt)
	$(VENV)-$*/bin/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m "not chaos and not long"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Faults on real clusters in namespaces of their own; one JSON object per case (tests/integration/faults.py).
chaos: $(STAMP)
	$(BIN)/python -m pytest -m chaos
	$(BIN)/python -m tests.integration.chaos

# Ten thousand schedules of faults in a simulated world, driven by seeds (tests/simulation).
simulate: $(STAMP)
	$(BIN)/python -m tests.simulation --into benchmarks/results/simulation.json

# A sweep's tracker on a PostgreSQL of its own that is restarted; needs its server's commands.
postgres-test: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[demo,formats,medical,postgres]' --group dev --constraint constraints.txt
	$(BIN)/python -m tests.integration.postgres_faults

# docs/cluster.md on three hosts of namespaces: ray up, sweeps, lost workers, a lost head; needs root, sshd, rsync, tmux.
cluster-test: wheel
	$(BIN)/python -m tests.lab --result tests/lab/result.json

# clusters/slurm.sbatch under a real SLURM of three hosts; needs root, sshd and Debian's slurmctld, slurmd, slurm-client.
slurm-test: wheel
	$(BIN)/python -m tests.lab.slurm --result tests/lab/slurm.json

bench: $(STAMP)
	@for script in $$(ls benchmarks/*.py); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

# The documentation as a site, without a connection; a warning is an error. The tutorial is executed when it changed (minutes).
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --group docs --constraint constraints.txt
	$(BIN)/sphinx-build -EW --keep-going -q docs docs/_build/html
	@echo docs/_build/html/index.html

# What clusters get: the package with its commit, no checkout (docs/cluster.md).
wheel: $(STAMP)
	rm -rf dist build
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	cp constraints.txt constraints-cuda.txt clusters/keep.py clusters/isweep@.service clusters/mlflow.service dist/

# README's commands from that wheel alone, in an empty environment and folder; downloads the dependencies.
wheel-test: wheel
	$(BIN)/python -m tests.wheel dist

# Every wheel by hash, of a CUDA node and of a machine without a GPU; needs uv, and for the second PyTorch's CPU builds.
lock: lock-cuda lock-cpu
lock-cuda lock-cpu: lock-%:
	$(PYTHON) clusters/lock.py $*

# What the GPUs of this machine really do, one file each in the current folder (docs/gpu.md).
gpu-check: $(STAMP)
	$(BIN)/isweep gpu-check --into .

# What the environment consists of, as CycloneDX; its writer has an environment of its own, so as not to be in it.
sbom: $(STAMP)
	test -x $(VENV)-sbom/bin/cyclonedx-py || { $(PYTHON) -m venv $(VENV)-sbom && \
	  $(VENV)-sbom/bin/python -m pip install --quiet 'cyclonedx-bom>=7'; }
	mkdir -p dist
	$(VENV)-sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
	  --output-file dist/sbom.cdx.json $(BIN)/python

clean:
	rm -rf $(VENV) $(VENV)-sbom $(VENV)-oldest $(VENV)-newest
