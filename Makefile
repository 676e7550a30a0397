# The two main commands are `make run` and `make test`; the others are for development.
# All paths are relative, so that the checkout may be in a directory whose name has spaces.

.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3.14 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
PY := .venv/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input -q
ARGS ?=
# Each start of a Python program would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: attack bench bench-peers browser docs eval help page release run screenshots soak test test-adoption test-backup test-lowest test-newest test-clients test-poolers test-prometheus test-supabase check conformance fault fuzz format lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 17

run: .venv/run.done ## start EXAI: embedded Postgres and Valkey unless addresses are configured
	@exec $(PY) -m exai serve $(ARGS)

test: .venv/dev.done .venv/referees/done .venv/s3/done check ## run the static checks, then the whole test suite (ARGS="-k name" to choose)
	@$(PY) -m pytest $(ARGS)

test-poolers: .venv/dev.done .venv/referees/done .venv/s3/done ## run the suite through transaction-mode poolers, and on the system's own Postgres
	@EXAI_TEST_POOLER=strict $(PY) -m pytest -q $(ARGS)
	@if PATH="$$PATH:/usr/sbin" command -v pgbouncer >/dev/null; then EXAI_TEST_POOLER=pgbouncer $(PY) -m pytest -q $(ARGS); \
		else echo "pgbouncer is not installed: not tested with it"; fi
	@for bin in /usr/lib/postgresql/*/bin; do \
		test -x "$$bin/initdb" || continue; \
		EXAI_TEST_PG_BIN="$$bin" $(PY) -m pytest -q $(ARGS) || exit 1; done

# For long lines of shell commands and of rules for alerts; the files hold one document each.
YAML_RULES := {extends: default, rules: {line-length: {max: 150}, document-start: disable, comments-indentation: disable, \
	braces: {max-spaces-inside: 1}}}

check: .venv/dev.done ## check formatting, lint, types, import layers, dead code, lock files and files of containers
	@$(MAKE) -s -j2 check-types check-dead check-texts

# In two processes at once, the longest first.
.PHONY: check-types check-dead check-texts
check-types:
	@$(PY) -m ruff format --check -q .
	@$(PY) -m ruff check -q .
	@$(PY) -m mypy
	@.venv/bin/lint-imports >.venv/imports.txt 2>&1 || { cat .venv/imports.txt; exit 1; }

check-dead:
	@$(PY) -m vulture

check-texts:
	@$(PY) -m docs.reference --check
	@$(PY) requirements/lock.py --check
	@.venv/bin/hadolint docker/Dockerfile
	@.venv/bin/shellcheck docker/*.sh tests/containers/images/*.sh .ci/run
	@$(PY) -m yamllint --strict -d "$(YAML_RULES)" compose.yaml docker tests/containers
	@$(PY) -m check_jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml
	@sh docker/check.sh

test-adoption: .venv/dev.done ## migrate a million messages of an older system while its clients stay active (minutes)
	@$(PY) -m pytest -n 0 -s -m heavy tests/migration $(ARGS)

.PHONY: test-previous
test-previous: .venv/dev.done ## run the acceptance tests of the last release on databases that this tree has migrated (minutes)
	@$(PY) -m tests.migration.previous $(ARGS)

# Each framework in environments of its own, with its oldest and its newest release.
ADAPTERS := openai-agents claude-agent adk pydantic-ai agent-framework langchain langgraph
.PHONY: test-adapters
test-adapters: .venv/dev.done $(foreach age,oldest newest,$(ADAPTERS:%=.venv/adapters/%-$(age)/done)) ## run the adapters with the oldest and the newest release of their frameworks (minutes)
	@for name in $(ADAPTERS); do for age in oldest newest; do echo "$$name, $$age"; \
		.venv/adapters/$$name-$$age/bin/python -m pytest -n 0 -q \
			$$(ls tests/adapters/test_$$(echo $$name | sed 's/-.*//')_*.py tests/adapters/test_$$name.py 2>/dev/null) $(ARGS) || exit 1; \
	done; done

# The quick parts: tests that depend on the releases of other packages, without timing, faults and attacks.
VERSION_TESTS := tests/unit tests/integration/mcp tests/integration/db tests/integration/cache tests/integration/providers
test-lowest: .venv/dev.done .venv/lowest/exai ## run the suite's quick parts on the oldest allowed versions, with the wheel and its extras
	@.venv/lowest/bin/python -m pytest -q $(VERSION_TESTS) $(ARGS)
	@EXAI_TEST_WHEELS=.venv/dist EXAI_TEST_VERSIONS=requirements/lowest.lock $(PY) -m pytest -n 0 -q -m heavy tests/packaging/test_installed.py

test-newest: .venv/dev.done .venv/newest/done .venv/dist/done ## do the same with the newest versions, and install the wheel with uv, pipx and on every Python that is found or brought
	@.venv/newest/bin/python -m pytest -q $(VERSION_TESTS) $(ARGS)
	@EXAI_TEST_WHEELS=.venv/dist $(PY) -m pytest -n 0 -q -m heavy tests/packaging

fault: .venv/dev.done .venv/s3/done ## inject seeded faults into every component under load (EXAI_FAULT_SEEDS=20, minutes)
	@EXAI_FAULT_SEEDS="$${EXAI_FAULT_SEEDS:-20}" EXAI_FAULT_SECONDS="$${EXAI_FAULT_SECONDS:-10}" \
		$(PY) -m pytest -n 0 -s -x tests/fault/test_seeds.py $(ARGS)
	@$(PY) -m pytest -n 0 -x -m heavy tests/fault/test_rolling.py tests/integration/blobs/test_uploads.py
	@if [ "$$(id -u)" = 0 ] && PATH="$$PATH:/usr/sbin" command -v iptables >/dev/null && unshare -n true 2>/dev/null; then \
		EXAI_TEST_OWN_NETWORK=1 unshare -n sh -c 'PATH="$$PATH:/usr/sbin:/sbin"; ip link set lo up && exec "$$@"' sh \
			$(PY) -m pytest -n 0 -x -m heavy tests/fault/test_partition.py; \
		else echo "packets are not dropped: that needs root, unshare and iptables"; \
			$(PY) -m pytest -n 0 -x -m heavy tests/fault/test_partition.py; fi
	@EXAI_TEST_MODEL_EXAMPLES="$${EXAI_TEST_MODEL_EXAMPLES:-500}" $(PY) -m pytest -n 0 -x tests/integration/store/test_model.py

release: .venv/dev.done test ## test, build the distributions into dist/, compare them with the commit, and make the tag (ARGS=--tag)
	@$(PY) requirements/release.py $(ARGS)

soak: .venv/dev.done ## run mixed load with faults for an hour, and compare memory, descriptors and durations (EXAI_SOAK_SECONDS=3600; Linux)
	@$(PY) -m pytest -n 0 -s -m heavy tests/fault/test_soak.py $(ARGS)

attack: .venv/dev.done ## run every attack of a hostile client in turn, with time limits (minutes)
	@EXAI_ATTACK_TIMES=1 $(PY) -m pytest -n 0 -s -m attack tests $(ARGS)

.PHONY: test-containers
test-containers: .venv/dev.done ## build the image, run compose.yaml, and the suite on containers (Docker, or root and apt; ARGS="--stack" or "--suite")
	@$(PY) -m tests.containers.run $(ARGS)

.PHONY: check-supply
check-supply: .venv/supply/done ## look for known vulnerabilities and forbidden licences in the container's packages; write a bill of materials
	@$(PY) requirements/supply.py .venv/supply/bin .venv/supply/image/bin/python .venv/supply/bill-of-materials.json

test-prometheus: .venv/dev.done ## ask a real Prometheus for everything that the dashboard shows (apt-get install prometheus)
	@$(PY) -m pytest -n 0 -q -m "heavy or not heavy" tests/acceptance/test_prometheus.py $(ARGS)

test-backup: .venv/dev.done ## back up and restore a million messages with bounded memory (minutes)
	@$(PY) -m pytest -n 0 -q -s -m heavy tests/integration/backup $(ARGS)

.PHONY: test-import
test-import: .venv/dev.done ## import sources of 500 MB with bounded memory (EXAI_TEST_IMPORT_MB=500, minutes; Linux)
	@$(PY) -m pytest -n 0 -q -s -m heavy tests/unit/importers tests/integration/importers $(ARGS)

test-supabase: .venv/dev.done .venv/supabase/done .venv/supabase/realtime ## run a phone, Supabase's advisor and Realtime's SQL on the real PostgREST and supabase-js (npm; git, wal2json)
	@$(PY) -m pytest -n 0 -q -m heavy tests/supabase $(ARGS)

.PHONY: conformance-stores
conformance-stores: .venv/dev.done .venv/stores/done ## check EXAI and other frameworks' stores against 100 rules, and print the table (minutes; ARGS="--write docs/stores.md")
	@PYTHONPATH=conformance:. $(PY) -m tests.stores.run --python .venv/stores/bin/python $(ARGS)

.PHONY: test-conformance-suite
test-conformance-suite: .venv/dev.done ## test conversation-store-conformance: each rule catches the store that breaks it; its types; it needs only Python
	@cd conformance && PYTHONPATH=. ../$(PY) -m unittest discover -q -s tests
	@cd conformance && PYTHONPATH=. ../$(PY) -m conversation_store_conformance prove
	@cd conformance && ../$(PY) -m mypy --config-file pyproject.toml -p conversation_store_conformance

conformance: .venv/dev.done ## run the official MCP suite, inspector and TypeScript client (from npm, with their own Node)
	@$(PY) -m tests.conformance.run

test-clients: .venv/dev.done .venv/referees/done .venv/clients/done .venv/node-clients/done .venv/adapters/openai-agents-newest/done .venv/adapters/claude-agent-newest/done ## run third-party clients through a conversation (minutes; some from npm; the page needs `make browser`)
	@$(PY) -m pytest -n 0 -m heavy tests/clients $(ARGS)

eval: .venv/dev.done ## score a configured model's findings on planted defects, with its key from the environment (MODEL=kimi-k3; costs one call each)
	@$(PY) -m tests.eval.run "$(MODEL)" $(ARGS)

fuzz: .venv/fuzz/done ## fuzz the MCP core with corrupted sessions, guided by coverage (Linux; EXAI_FUZZ_SECONDS=60)
	@PYTHONPATH=. .venv/fuzz/bin/python -m tests.fuzz.core .venv/fuzz/found "$${EXAI_FUZZ_SECONDS:-60}"

browser: .venv/dev.done ## install what the tests of the page need: Playwright, and Chromium where apt can bring it
	@$(PIP) install --require-hashes -r requirements/browser.lock
	@for p in chromium chromium-browser google-chrome chrome; do command -v $$p >/dev/null && exit 0; done; \
		echo "installing Chromium (once)"; \
		apt-get update -qq >/dev/null 2>&1; DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null || { \
		echo "no Chromium: install one, or name one with EXAI_TEST_BROWSER" >&2; exit 1; }

page: .venv/dev.done ## bundle the packages that the page uses again, as requirements/page pins them (npm)
	@$(PY) requirements/page/build.py .venv/page

docs: .venv/dev.done ## write the reference pages in docs/ from the settings, the commands and the tools
	@$(PY) -m docs.reference

screenshots: browser ## take the pictures of the page into docs/
	@$(PY) -m tests.browser.screenshots docs

bench: .venv/run.done ## measure every operation beside its lower bound (ARGS="--quick", "--here", "--door", "--cloud", "--chat")
	@$(PY) -m exai bench $(ARGS)

bench-peers: .venv/run.done .venv/peers/done ## run the same workload on other conversation stores and the same servers (ARGS="--cloud")
	@PYTHONPATH=. $(PY) bench/peers.py --python .venv/peers/bin/python $(ARGS)
	@$(MAKE) -s bench-adapters ARGS="$(filter --quick --json,$(ARGS))"

# Frameworks with a store of their own in Postgres.
OWN_STORES := openai-agents adk langgraph
.PHONY: bench-adapters
bench-adapters: .venv/run.done $(OWN_STORES:%=.venv/adapters/%-newest/done) ## run the adapters and their frameworks' own stores on the same servers, near and 10 ms away (ARGS="--quick", "--write docs/adapters.md")
	@PYTHONPATH=. $(PY) bench/adapters.py --environments .venv/adapters $(ARGS)

format: .venv/dev.done ## format the code
	@$(PY) -m ruff check -q --fix .
	@$(PY) -m ruff format -q .

lock: .venv/dev.done ## resolve the dependencies again and write requirements/*.lock (ARGS=--keep: upgrade nothing)
	@test -x .venv/lock/bin/uv || { $(PYTHON) -m venv .venv/lock && .venv/lock/bin/python -m pip install -q uv; }
	@$(PY) requirements/lock.py --uv .venv/lock/bin/uv $(ARGS)

clean: ## remove the environment and caches; data directories are never touched
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# An environment whose Python no longer exists, as after an upgrade of the system, is created again.
$(shell test -x .venv/bin/python || rm -f .venv/run.done .venv/dev.done .venv/peers/done .venv/stores/done 2>/dev/null)

# `python -m ...` and relative paths everywhere: a console script's first line cannot hold a path with spaces.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "EXAI needs Python 3.11 or newer; none was found on PATH (set PYTHON=/path/to/python)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || { rm -rf .venv 2>/dev/null; \
		echo "$(PYTHON) cannot make an environment in .venv, for the reason above; on Debian and Ubuntu it may need: apt install python3-venv" >&2; exit 1; }

.venv/run.done: requirements/run.lock pyproject.toml | .venv/bin/python
	@test -e .venv/dev.done -a .venv/dev.done -nt requirements/run.lock -a .venv/dev.done -nt pyproject.toml || { \
		echo "installing what EXAI runs on (once)"; \
		$(PIP) install --require-hashes -r requirements/run.lock && \
		$(PIP) install --no-build-isolation --no-deps --no-index -e .; }
	@touch $@

.venv/dev.done: requirements/dev.lock pyproject.toml | .venv/bin/python
	@echo "installing what the tests need (once)"
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@$(PIP) install --no-build-isolation --no-deps --no-index -e .
	@touch $@

.venv/dist/done: .venv/dev.done pyproject.toml $(shell find exai alembic -type f -not -name '*.pyc')
	@rm -rf .venv/dist && $(PIP) wheel --no-build-isolation --no-deps --no-index -w .venv/dist . && touch $@

.venv/lowest/done: requirements/lowest.lock | .venv/bin/python
	@echo "installing the oldest versions allowed into an environment of their own (once)"
	@test -x .venv/lowest/bin/python || $(PY) -m venv --without-pip .venv/lowest
	@# The lock is complete. Some releases of pip do not see its pin of `pyjwt` in a requirement of `pyjwt[crypto]`.
	@$(PIP) --python .venv/lowest/bin/python install --no-compile --no-deps --require-hashes -r requirements/lowest.lock
	@touch $@

.venv/lowest/exai: .venv/lowest/done .venv/dist/done
	@$(PIP) --python .venv/lowest/bin/python install --no-compile --no-deps --no-index --force-reinstall .venv/dist/exai-*.whl
	@touch $@

.venv/newest/done: pyproject.toml .venv/dist/done
	@echo "installing the newest versions allowed into an environment of their own"
	@test -x .venv/newest/bin/python || $(PY) -m venv --without-pip .venv/newest
	@$(PY) requirements/lock.py --tools >.venv/newest/tools.txt
	@$(PIP) --python .venv/newest/bin/python install --no-compile --upgrade --upgrade-strategy eager -r .venv/newest/tools.txt \
		"$$(echo .venv/dist/exai-*.whl)[server,embedded,documents]"
	@touch $@

.venv/s3/done: requirements/s3.lock | .venv/bin/python
	@echo "installing an S3 server for the tests (once)"
	@test -x .venv/s3/bin/python || $(PY) -m venv --without-pip .venv/s3
	@$(PIP) --python .venv/s3/bin/python install --no-compile --require-hashes -r requirements/s3.lock
	@touch $@

.venv/referees/done: requirements/referees.lock | .venv/bin/python
	@echo "installing the official client of today into an environment of its own (once)"
	@test -x .venv/referees/bin/python || $(PY) -m venv --without-pip .venv/referees
	@$(PIP) --python .venv/referees/bin/python install --no-compile --require-hashes -r requirements/referees.lock
	@touch $@

.venv/adapters/%/done: requirements/adapters/%.lock | .venv/bin/python
	@echo "installing $* into an environment of its own (once)"
	@test -x .venv/adapters/$*/bin/python || $(PY) -m venv --without-pip .venv/adapters/$*
	@# The lock is complete. Some releases of pip do not see its pin of a package in a requirement of that package's extra.
	@$(PIP) --python .venv/adapters/$*/bin/python install --no-compile --no-deps --require-hashes -r $<
	@touch $@

.venv/clients/done: requirements/clients.lock | .venv/bin/python
	@echo "installing other people's clients into an environment of their own (once)"
	@test -x .venv/clients/bin/python || $(PY) -m venv --without-pip .venv/clients
	@$(PIP) --python .venv/clients/bin/python install --no-compile --require-hashes -r requirements/clients.lock
	@touch $@

.venv/node-clients/done: tests/clients/package.json tests/clients/package-lock.json | .venv/bin/python
	@mkdir -p .venv/node-clients && cp tests/clients/package.json tests/clients/package-lock.json .venv/node-clients/
	@if command -v npm >/dev/null; then echo "installing Claude Code, Codex and Gemini CLI from npm (once)"; \
		npm ci --prefix .venv/node-clients --no-audit --no-fund --ignore-scripts --silent && touch $@; \
		else echo "npm is not on PATH: not tested with Claude Code, Codex and Gemini CLI"; fi

.venv/supply/done: requirements/supply.lock requirements/image.lock | .venv/bin/python
	@echo "installing auditing tools, and what the container holds, into environments of their own (once)"
	@test -x .venv/supply/bin/python || $(PY) -m venv --without-pip .venv/supply
	@$(PIP) --python .venv/supply/bin/python install --no-compile --require-hashes -r requirements/supply.lock
	@$(PY) -m venv --clear --without-pip .venv/supply/image
	@$(PIP) --python .venv/supply/image/bin/python install --no-compile --require-hashes -r requirements/image.lock
	@touch $@

.venv/supabase/done: tests/supabase/package.json tests/supabase/package-lock.json | .venv/bin/python
	@mkdir -p .venv/supabase && cp tests/supabase/package.json tests/supabase/package-lock.json .venv/supabase/
	@if command -v npm >/dev/null; then echo "installing PostgREST, supabase-js and the Supabase CLI from npm (once)"; \
		npm ci --prefix .venv/supabase --no-audit --no-fund --ignore-scripts --silent && touch $@; \
		else echo "npm is not on PATH: not tested with PostgREST, supabase-js and Supabase's advisor"; fi

# The SQL that a release of Realtime runs in the database of a project. EXAI_REALTIME_SOURCE may name another copy.
REALTIME := v2.129.8
.venv/supabase/realtime: | .venv/supabase/done
	@rm -rf .venv/supabase/realtime.git $@
	@if git clone -q --bare --depth 1 --branch $(REALTIME) "$${EXAI_REALTIME_SOURCE:-https://github.com/supabase/realtime}" \
			.venv/supabase/realtime.git 2>/dev/null; \
		then mkdir $@ && git -C .venv/supabase/realtime.git archive HEAD lib/realtime/tenants/repo/migrations \
			| tar x -C $@ --strip-components=5; \
		else echo "the source of Realtime cannot be fetched: not tested with Realtime's SQL"; fi

.venv/fuzz/done: requirements/fuzz.lock | .venv/bin/python
	@echo "installing the fuzzer into an environment of its own (once)"
	@test -x .venv/fuzz/bin/python || $(PY) -m venv --without-pip .venv/fuzz
	@$(PIP) --python .venv/fuzz/bin/python install --no-compile --require-hashes -r requirements/fuzz.lock
	@touch $@

.venv/stores/done: requirements/stores.lock | .venv/bin/python
	@echo "installing the frameworks whose stores are checked into an environment of their own (once)"
	@test -x .venv/stores/bin/python || $(PYTHON) -m venv .venv/stores
	@.venv/stores/bin/python -m pip --disable-pip-version-check --no-input -q install --require-hashes -r requirements/stores.lock
	@touch $@

.venv/peers/done: requirements/peers.lock | .venv/bin/python
	@echo "installing the other stores into an environment of their own (once)"
	@test -x .venv/peers/bin/python || $(PYTHON) -m venv .venv/peers
	@.venv/peers/bin/python -m pip --disable-pip-version-check --no-input -q install --require-hashes -r requirements/peers.lock
	@touch $@
