# make help

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
CARGO_TARGET_DIR ?= target
# A Rust that rustup has just installed is not on the path yet. It comes first, as in .ci/install-parts, because that of
# the distribution may be too old.
export PATH := $(HOME)/.cargo/bin:$(PATH)
export CARGO_TARGET_DIR

RELEASE := $(CARGO_TARGET_DIR)/release/kvmb
NEXTEST := $(CARGO) nextest --version >/dev/null 2>&1
DEBUG := $(CARGO_TARGET_DIR)/debug/kvmb
# What is installed, packed and shown: the release, built first; or a program that is there already.
KVMB ?= $(RELEASE)
GUEST := $(CARGO_TARGET_DIR)/test-parts/guest

.PHONY: all build test test-old-qemu fuzz model-night screenshots demo bench lint generated install deb dist clean help parts parts-remove program rust

all: build

build: rust ## build the program (release)
	$(CARGO) build --release --locked

# See src/repo/key.rs; a release does not know it.
test: export KVMB_TEST_QUICK_KEYS := 1
test: parts ## install what is missing and run all tests (root; starts real QEMU, libvirt and restic)
	tests/support/guest/build $(GUEST)
	if $(NEXTEST); then .ci/without-kvm $(CARGO) nextest run --locked; \
	else .ci/without-kvm $(CARGO) test --locked --no-fail-fast --lib --bins --tests -- --test-threads=2; fi

test-quick: rust ## run the tests that need neither root nor QEMU (make test-repo and the like: the tests of one layer)
	$(CARGO) test --locked --lib
	$(CARGO) test --locked --test project --test schedule --test storage --test capture -- \
	  architecture:: generated:: readme:: cron_expressions:: conformance:: definition::

LAYERS := $(notdir $(patsubst %/main.rs,%,$(wildcard tests/*/main.rs)))
LAYER_TESTS := $(addprefix test-,$(LAYERS))
.PHONY: test-quick $(LAYER_TESTS)
test-quick $(LAYER_TESTS): export KVMB_TEST_QUICK_KEYS := 1
$(LAYER_TESTS): test-%: parts # run the tests of one layer: make test-repo
	tests/support/guest/build $(GUEST)
	$(CARGO) test --locked --lib $*::
	if $(NEXTEST); then .ci/without-kvm $(CARGO) nextest run --locked --test $*; \
	else .ci/without-kvm $(CARGO) test --locked --no-fail-fast --test $* -- --test-threads=2; fi

test-old-qemu: parts ## back up and restore with libvirt 9.0 and QEMU 7.2, those of plain Debian 12 (root, network; some minutes)
	$(CARGO) build --locked
	KVMB=$(DEBUG) .ci/test-old-qemu

# Each target a minute; what is found goes to fuzz/artifacts, and belongs into fuzz/seeds when it is fixed.
FUZZ_SECONDS ?= 60
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz: rust ## feed random bytes to everything that parses what others made (cargo install cargo-fuzz; FUZZ_SECONDS=60)
	for target in $$(ls fuzz/seeds); do mkdir -p fuzz/corpus/$$target; \
	cd fuzz && env -u CARGO_TARGET_DIR $(CARGO) fuzz run -s none $$target corpus/$$target seeds/$$target -- \
	  -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 || exit 1; cd ..; done

model-night: export KVMB_TEST_QUICK_KEYS := 1
model-night: export KVMB_MODEL_SEED := random
model-night: export KVMB_MODEL_STEPS ?= 4000
model-night: export KVMB_MODEL_SHRINK ?= 20
model-night: parts ## the model test with seeds that nobody has seen and 4,000 steps: some hours (root)
	.ci/without-kvm $(CARGO) nextest run --locked --profile night --no-capture --test ops -E 'test(/^model::/)'

# The test writes all of them to target/screenshots; these six stand in README.md and docs.
PICTURES := overview plots job restore telephone files
screenshots: parts ## picture every page of the web console, with the data of real backups (root)
	tests/support/guest/build $(GUEST)
	KVMB_TEST_QUICK_KEYS=1 $(CARGO) test --locked --test cli console::browser::pictures::
	mkdir -p docs/images
	for name in $(PICTURES); do cp $(CARGO_TARGET_DIR)/screenshots/small-$$name.png docs/images/console-$$name.png; done

demo: ## install what is missing, build, back up a running machine, verify and restore it (root)
	.ci/install-parts demo
	$(MAKE) build
	KVMB=$(KVMB) .ci/demo

bench: ## compare with other tools: wall time, processor, memory, stored bytes (root; BENCH_GB=4)
	.ci/install-parts bench
	$(MAKE) build
	KVMB=$(KVMB) .ci/bench

lint: rust ## formatting, clippy, rustdoc: no warning is left
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

generated: rust ## write completions/, man/, config.schema.json and the pinned help and messages again, from the program
	$(CARGO) build --locked
	mkdir -p completions man
	rm -f man/*.1
	$(DEBUG) man man >/dev/null
	$(DEBUG) completions bash >completions/kvmb.bash
	$(DEBUG) completions zsh >completions/_kvmb
	$(DEBUG) completions fish >completions/kvmb.fish
	$(DEBUG) config schema >config.schema.json
	KVMB_UPDATE_SNAPSHOTS=1 $(CARGO) test --locked --test project snapshots::

install: program ## install below $(DESTDIR)$(PREFIX)
	install -D -m 755 $(KVMB) $(DESTDIR)$(PREFIX)/bin/kvmb
	install -D -m 644 example_config.json $(DESTDIR)$(PREFIX)/share/kvmb/example_config.json
	install -D -m 644 config.schema.json $(DESTDIR)$(PREFIX)/share/kvmb/config.schema.json
	install -d $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -D -m 644 completions/kvmb.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/kvmb
	install -D -m 644 completions/_kvmb $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_kvmb
	install -D -m 644 completions/kvmb.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/kvmb.fish

deb: program ## make a Debian package below target/
	KVMB=$(KVMB) .ci/deb

dist: rust ## make a source archive with all crates below target/; it builds without network
	.ci/dist

program: $(if $(filter $(RELEASE),$(KVMB)),build)

clean: rust ## remove what was built
	$(CARGO) clean

# Instead of make's "cargo: No such file or directory".
rust:
	@command -v $(firstword $(CARGO)) >/dev/null || { \
	echo 'kvmb: error: Rust is missing: no $(firstword $(CARGO)) on the PATH' >&2; \
	echo 'kvmb: hint: run as root: .ci/install-parts demo' >&2; exit 1; }

parts:
	.ci/install-parts

parts-remove: ## remove the package source that the set-up added, if it added one (root)
	.ci/install-parts remove

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26
