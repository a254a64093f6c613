# Every target is one command that you could type. `make help` lists them.
SHELL := /bin/bash
BENCH := .venv/bin
VLLM_PYTHON ?=
VLLM := $(or $(VLLM_PYTHON),.venv-vllm/bin/python)
BACKEND ?= $(if $(shell command -v nvidia-smi),flash_attn,cpu_attn)
MODEL ?= tiny-llama
PORT ?= 8000
SWEEP ?= configs/sweeps/demo.yaml
RUNS ?= runs/demo
POLICY ?= policy.yaml
POOLS ?= pools.yaml
BACKENDS ?= sdpa,sink_window
LONG := tests/deploy/test_commands_e2e.py tests/deploy/test_sweep_e2e.py tests/greenbench/sweep/test_chaos_e2e.py \
	tests/greenbench/sweep/test_long_answers_e2e.py \
	tests/analysis/bottleneck/test_classify_e2e.py tests/servers/plugins/test_plugins_e2e.py tests/test_wheel_e2e.py
PAGES := tests/analysis/report/test_browser.py tests/deploy tests/scripts/test_results.py
SERVERS = $(filter-out $(LONG) $(PAGES) tests/deploy/% tests/vllm/%, \
	$(sort $(shell grep -rl --include='*.py' 'mark\.e2e' tests))) # no need to import the other 200 files
E2E := $(BENCH)/pytest --reruns 1 -rR -m "e2e and not gpu"
LANE := $(MAKE) --no-print-directory --output-sync=target --jobs
MINUTES ?= 60
export VLLM_PYTHON
unexport PYTHONDONTWRITEBYTECODE # where it is set, each process of the tests compiles what it imports
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-policy serve load gateway run report backends doctor check check-waiting check-sweeps check-planning check-analysis check-types check-vllm check-style \
	test test-waits test-computes test-tools test-e2e e2e-servers e2e-pages test-long test-oldest format \
	results verify soak mutants docs audit licences sbom bench-backends bench-client bench-peers bench-gateway bench-telemetry bench-analysis bench-plan

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | column -ts $$'\t'

setup: ## install both environments from the lock files (does nothing when already done)
	@scripts/setup.sh

demo: setup ## which of three backends should serve a small model here? Measures for 9 minutes at most; runs/demo/report.html
	@$(BENCH)/greenbench choose retriever --contexts 512,2k,4k --within 9m --out runs/demo \
		--backends 'cpu_attn,sdpa,sink_window(window=1024)'

demo-policy: setup ## two real servers behind the gateway: does a policy pay? 15 minutes at most; runs/demo-policy/index.html
	@$(BENCH)/python -m scripts.demo_policy

serve: setup ## start one proven server: make serve BACKEND=sdpa [MODEL=tiny-llama] [PORT=8000]
	@$(BENCH)/python -m servers --backend '$(BACKEND)' --model '$(MODEL)' --port $(PORT)

load: setup ## drive a running server from Locust's web page: make load [PORT=8000] [ARGS='--context-tokens 8192' or --help]
	@$(BENCH)/python -m loadgen.longctx --host http://127.0.0.1:$(PORT) $(ARGS)

run: setup ## measure a sweep: make run SWEEP=configs/sweeps/demo.yaml
	@$(BENCH)/greenbench run $(SWEEP)

gateway: setup ## the server before the pools: make gateway POLICY=policy.yaml POOLS=pools.yaml [PORT=8080]
	@$(BENCH)/python -m gateway --policy $(POLICY) --pools $(POOLS) $(if $(filter file,$(origin PORT)),,--port $(PORT)) $(ARGS)

report: setup ## analyse run directories: make report RUNS=runs/demo
	@$(BENCH)/greenbench report $(RUNS)

results: setup ## rewrite the tables and reports of results/h200 from the runs there: make results [ADD=runs/my-sweep]
	@$(BENCH)/python -m scripts.results $(if $(ADD),--add $(ADD))
	@$(BENCH)/python -m scripts.world

backends: setup ## every backend, whether this host can run it, and if not why
	@$(BENCH)/greenbench backends

doctor: setup ## what is installed, what is missing, and how to fix it
	@$(BENCH)/greenbench doctor

check: check-style ## format, lint, types, and the tests that take seconds
	@$(LANE) 4 check-waiting check-sweeps check-planning check-analysis check-types check-vllm

check-style: setup
	@$(BENCH)/ruff format --check --quiet . && $(BENCH)/ruff check --quiet .

check-waiting: # tests that mostly wait for a pretended server, one after the other …
	@$(BENCH)/pytest -m "not e2e and not vllm and not gpu" --ignore tests/greenbench/sweep \
		--ignore tests/vllm --ignore tests/analysis --ignore tests/outside --ignore tests/planning

check-sweeps: # … whole sweeps as processes, of real windows: a red one runs once more, as end to end …
	@$(BENCH)/pytest --reruns 1 -rR -m "not e2e and not gpu" tests/greenbench/sweep

check-planning: # … and beside them, behind them, what only computes, the longest first
	@nice -n 15 $(BENCH)/pytest -m "not e2e and not gpu" tests/outside tests/planning

check-analysis:
	@nice -n 15 $(BENCH)/pytest -m "not e2e and not gpu" tests/analysis

check-types:
	@nice -n 15 $(BENCH)/pyright
	@nice -n 15 $(BENCH)/pyright -p pyrightconfig.vllm.json --pythonpath $(VLLM)

check-vllm:
	@nice -n 15 $(VLLM) -m pytest -m "not e2e and not gpu" tests/vllm

test: check-style ## check, the documentation, real vLLM servers, a real Prometheus and a real browser end to end
	@$(MAKE) --no-print-directory --jobs 2 test-waits test-computes

test-waits: # what mostly waits, in two steps …
	@MAKEFLAGS= $(LANE) 2 check-waiting check-sweeps
	@MAKEFLAGS= $(LANE) 1 e2e-servers

test-computes: # … and behind both of them, on the cores that they leave idle, what computes, the longest first
	@MAKEFLAGS= $(LANE) 2 check-planning check-analysis e2e-pages check-types check-vllm docs

test-e2e: setup ## the end-to-end tests alone
	@$(LANE) 2 e2e-servers e2e-pages

test-tools:
	@scripts/test_tools.sh

e2e-servers: test-tools # real servers, whose boots and loads mostly wait …
	@$(E2E) $(SERVERS)

e2e-pages: test-tools # … and beside them, behind them, a browser, a Prometheus and the pages of the results
	@nice -n 15 $(E2E) $(PAGES)

test-long: setup ## end to end, what CI's half hour has no room for: the images' commands, runners that die, long answers, bottlenecks
	@$(BENCH)/pytest --reruns 1 -rR -m e2e $(LONG)

test-oldest: setup ## the tests of our backends on the oldest vLLM that is supported (CPU)
	@scripts/setup.sh oldest
	@.venv-vllm-oldest/bin/python -m pytest -m "not e2e and not gpu" tests/vllm

docs: ## the documentation as a site: build/site/index.html
	@scripts/setup.sh docs
	@NO_MKDOCS_2_WARNING=1 nice .venv-docs/bin/mkdocs build --strict --quiet && echo "docs: build/site/index.html"

sbom: setup ## a software bill of materials for each lock file (CycloneDX JSON): build/sbom/
	@scripts/setup.sh audit && mkdir -p build/sbom
	@.venv-audit/bin/cyclonedx-py environment .venv/bin/python --pyproject pyproject.toml --output-reproducible -o build/sbom/bench.json
	@for lock in vllm-cpu vllm-cuda docs validators; do \
		.venv-audit/bin/cyclonedx-py requirements requirements/$$lock.lock --output-reproducible -o build/sbom/$$lock.json || exit; done
	@ls build/sbom/*.json

licences: setup ## the licence of each package of the bench; a GPL ends with 1
	@scripts/setup.sh audit
	@.venv-audit/bin/pip-licenses --python .venv/bin/python --from mixed --order license --partial-match --fail-on 'GPL;GNU General'

audit: ## known vulnerabilities of what the lock files pin; asks PyPI, and ends with 1 where that does not answer
	@scripts/setup.sh audit
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip \
		$(addprefix -r ,$(wildcard requirements/*.lock))

format: setup ## format the code
	@$(BENCH)/ruff format --quiet . && $(BENCH)/ruff check --fix --quiet .

verify: setup ## compare backends with the exact reference: make verify [BACKENDS=sdpa,sink_window] [MODEL=tiny-llama]
	@$(BENCH)/greenbench verify --backends '$(BACKENDS)' --model '$(MODEL)'

soak: setup ## an hour of load while servers, recorder, gateway, network, disk and clock fail: make soak [MINUTES=60]; runs/soak/soak.html
	@$(BENCH)/python -m scripts.soak --minutes $(MINUTES)

mutants: setup ## check that the energy tests catch planted faults (each must turn a test red)
	@$(BENCH)/python scripts/mutants.py

bench-backends: setup ## our attention backends against vLLM's own, whole decode and prefill steps (keep the machine quiet)
	@$(VLLM) -m servers.bench.steps

bench-client: setup ## the load generator's own error and cost, and its peers', against a server that logs its true times
	@$(BENCH)/python scripts/bench_client.py --runs 3 --out docs/client-bench.md

bench-peers: setup ## install GuideLLM and AIPerf for bench-client, each in an environment of its own (7 GB)
	@scripts/install_peers.sh

bench-gateway: setup ## what the gateway costs, beside direct and vllm-router (ROUTER=path of its command)
	@$(BENCH)/python scripts/bench_gateway.py $(if $(ROUTER),--router $(ROUTER))

bench-telemetry: setup ## what the sampler costs
	@$(BENCH)/python scripts/bench_telemetry.py

bench-analysis: setup ## how the analysis scales, 10^4 to 10^6 requests
	@$(BENCH)/python -m scripts.bench_analysis

bench-plan: setup ## how long the plan's simulator takes for an hour of traffic
	@$(BENCH)/python scripts/bench_plan.py
