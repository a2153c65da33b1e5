# `make` lists the targets. Everything goes into .venv and build/.

.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
# Where it is set (as in many container images) each of the thousand Pythons that the tests start
# compiles the package anew, and each process of pytest rewrites all tests: a quarter of their time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: setup
setup: ## set up .venv with everything that is needed to run and develop
	@python3 scripts/set_up.py

.PHONY: setup-tests
setup-tests: ## also the programs that the tests run (nginx, PostgreSQL, Node, …)
	@python3 scripts/set_up.py --tests

.PHONY: demo
demo: ## a curl through a sidecar, and a service that two sidecars take over: what happened
	@python3 scripts/set_up.py --demo
	@$(PYTHON) -m scripts.demo

EXAMPLE = sofarpc

.PHONY: example-takeover
example-takeover: ## calls through two sidecars in two pods (EXAMPLE=sofarpc, dubbo or anthunder; root)
	@python3 scripts/set_up.py --example
	@$(PYTHON) -m examples.takeover.run $(EXAMPLE)

.PHONY: test
test: setup-tests ## run all tests (about a quarter of an hour at most)
	@scripts/test

# What takes long: real applications, rules in namespaces, BPF, fuzzing, crowds, others' JVMs.
SLOW_TESTS = $(addprefix tests/,interop requests mesh interception acceleration harness bench \
	fuzz/test_targets.py $(patsubst %,control/test_%.py,room trace storm stalls users install) \
	$(patsubst %,codecs/test_frames_%.py,clients java) \
	$(patsubst %,registry/test_%.py,sofaregistry zookeeper zookeeper_java etcd) \
	$(patsubst %,takeover/test_%.py,captured churn dubbo flow hostile_registry hostile_users) \
	$(patsubst %,takeover/test_%.py,http_services rolling sofarpc state grpc triple) \
	$(patsubst %,health/test_%.py,servers sidecar) \
	$(patsubst %,tracing/test_%.py,grpc peers traces))

.PHONY: test-quick
test-quick: setup-tests ## run most tests within two minutes: none of real applications or rules
	$(PYTHON) -m scripts.run_tests -n "$$(($$(nproc) + 3))" -m "not exclusive and not soak" \
		$(addprefix --ignore ,$(SLOW_TESTS))

.PHONY: test-sanitizers
test-sanitizers: setup-tests ## run the tests of the C code under ASan, UBSan and TSan
	@scripts/test-sanitizers

FUZZ_SECONDS = 600

.PHONY: fuzz
fuzz: setup-tests ## fuzz what reads others' input (ten minutes each: FUZZ_SECONDS=…, TARGET=…)
	@$(PYTHON) -m scripts.fuzz --seconds $(FUZZ_SECONDS) $(TARGET)

.PHONY: soak
soak: setup-tests ## run the long tests (minutes each)
	$(PYTHON) -m pytest -m soak --timeout 1800

FOREIGN_OPTIONS = $(if $(MODULE),--module "$(MODULE)") $(if $(MODE),--mode "$(MODE)")

.PHONY: test-foreign
test-foreign: ## run CPython's own network tests, hooked (MODULE=… MODE=… for some of it)
	@python3 scripts/set_up.py --foreign
	@$(PYTHON) -m scripts.foreign $(FOREIGN_OPTIONS)

BENCH_OPTIONS = $(if $(OF),--of $(OF)) $(if $(SCENARIO),--scenario "$(SCENARIO)") \
	$(if $(SIDE),--side "$(SIDE)") $(if $(SHORT),--short)

.PHONY: bench
bench: ## measure the sidecar beside its peers (SCENARIO=… SIDE=… for some of it)
	@python3 scripts/set_up.py --bench
	@$(PYTHON) -m scripts.bench $(BENCH_OPTIONS)

.PHONY: bench-connections
bench-connections: ## that of connections only, half of the time (SHORT=1 for less certain numbers)
	@$(MAKE) --no-print-directory bench OF=connections

.PHONY: bench-requests
bench-requests: ## that of requests only: HTTP/1.1, Bolt, Dubbo (SHORT=1 for less certain numbers)
	@$(MAKE) --no-print-directory bench OF=requests

.PHONY: bench-http2
bench-http2: ## that of HTTP/2 and gRPC only, and of what resilience and traces cost (SHORT=1 likewise)
	@$(MAKE) --no-print-directory bench OF=http2

.PHONY: bench-short
bench-short: ## all within three minutes each, with less certain numbers
	@$(MAKE) --no-print-directory bench SHORT=1

.PHONY: bench-reload
bench-reload: setup ## measure reloads of routes and of services
	@$(PYTHON) -m scripts.measure_reload

.PHONY: bench-scale
bench-scale: setup ## measure what grows with use (NAME=… for some of it)
	@$(PYTHON) -m scripts.bench_scale $(NAME)

.PHONY: bench-docs
bench-docs: ## write the tables of docs/performance.md anew, from the committed results
	@$(PYTHON) -m scripts.bench --docs

.PHONY: lint
lint: setup-tests ## check formatting, style, types and warnings
	@scripts/lint

.PHONY: format
format: setup-tests ## format all code
	@$(PYTHON) -m ruff check --fix --quiet .
	@$(PYTHON) -m ruff format .
	@find hook pysidecar scripts tests -name node_modules -prune -o -name "*.[ch]" -print | xargs clang-format -i

.PHONY: clean
clean: ## remove everything that was built, .venv included
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf tests/interop/node/node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +
	find pysidecar -name '*.so' -delete
