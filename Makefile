# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= auto
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NATIVE := runtime/native/libregionrt.so
KERNELS := runtime/gpu/sources/roi_align.cu
KERNEL_SOURCES := $(wildcard plugins/*.h plugins/*/*.h plugins/*/*.cuh plugins/*/*.cu) plugins/native/cuda.py
NATIVE_SOURCES := $(filter-out plugins/%/tensorrt_plugin.cpp plugins/native/tensorrt_%, \
	$(wildcard plugins/*.h plugins/*/*.h plugins/*/*.cpp)) plugins/native/build.py

.PHONY: help setup native plugins-so gpu demo test lint format constraints clean

help:
	@echo "make native       the CPU ops, compiled anew where their sources changed (needs a C++ compiler), and the CUDA"
	@echo "                  kernels' sources where the runtime compiles them from"
	@echo "make gpu          our CUDA kernels on this machine's NVIDIA GPU, beside PyTorch: bench/results/gpu-<device>.md; needs"
	@echo "                  no environment, only torch, torchvision, cuda-python and NVRTC in \$$(PYTHON); engines of"
	@echo "                  TensorRT where it imports: of nets exported with regionrt[train,export], or BUNDLE=FOLDER"
	@echo "make plugins-so TENSORRT_INCLUDE=DIR [CUDA=DIR] [ARCHITECTURES=87]"
	@echo "                  the library of our TensorRT plugins, for JetPack 6, trtexec and C++ programs (needs nvcc)"
	@echo "make demo         the whole road on data it makes itself; the results go to demo/"
	@echo "make test         all tests, on all cores (JOBS=1: one after the other)"
	@echo "make lint         ruff and mypy"
	@echo "make format       ruff format"
	@echo "make constraints  resolve constraints.txt anew (needs uv)"
	@echo "make clean        remove the environment and what was built"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "RegionRT needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || \
		{ echo "no virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=23.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	@touch $(READY)

native: $(KERNELS) $(NATIVE)

$(KERNELS): $(KERNEL_SOURCES)
	@$(PYTHON) plugins/native/cuda.py --sources
	@touch $@

$(NATIVE): $(NATIVE_SOURCES)
	@$(PYTHON) plugins/native/build.py

gpu: $(KERNELS)
	$(PYTHON) -m regionrt.bench.suites.gpu --out bench/results $(if $(BUNDLE),--bundle "$(BUNDLE)")

# On a device: no virtual environment is needed, only Python, a C++ compiler, nvcc and TensorRT's headers.
plugins-so:
	@$(PYTHON) -m regionrt.plugins.native.tensorrt_build \
		$(if $(TENSORRT_INCLUDE),--include "$(TENSORRT_INCLUDE)") $(if $(CUDA),--cuda "$(CUDA)") $(if $(ARCHITECTURES),--architectures "$(ARCHITECTURES)")

demo: $(READY)
	$(BIN)/regionrt demo --out demo

# Without a compiler the tests of the compiled ops cannot run, the others can. One process per core, one thread each:
# threads of several processes that spin while they wait for each other take many times as long.
test: $(READY)
	-@$(MAKE) --no-print-directory native
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

constraints:
	printf 'torch==2.14.1\ntorchvision==0.29.1\n' > .pins
	uv pip compile pyproject.toml --extra all --universal --python-version 3.10 --quiet --no-header --no-annotate \
		--constraint .pins --output-file .resolved
	@{ echo "# Versions that are tested together; the ranges stand in pyproject.toml. Made by \`make constraints\`."; \
		cat .resolved; } > constraints.txt
	@rm -f .pins .resolved

clean:
	rm -rf $(VENV) $(NATIVE) runtime/native/libregionrt_tensorrt.so runtime/gpu/sources build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
