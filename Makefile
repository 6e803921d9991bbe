# SPDX-License-Identifier: GPL-2.0
#
# Each target is a command of tools/testing/gpusvm/run.sh, which prepares what it needs.

RIG := tools/testing/gpusvm/run.sh
export FILTER UPDATE KASAN ARCH MIRROR KDIR CHECK SVM RUNS GPUSVM_CACHE

.PHONY: help
help: ## this list
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1 \2/p' $(MAKEFILE_LIST) | awk '{ name = $$1; sub(/^ *[^ ]* */, ""); printf "  %-12s%s\n", name, $$0 }'
	@echo "The cache folder is \$$GPUSVM_CACHE, by default ~/.cache/rust-gpusvm; MIRROR=<address> names a Debian mirror."

.PHONY: run
run: ## the demonstration: a process and a (software) GPU share its memory
	@$(RIG) run

.PHONY: test
test: ## every test; KASAN=1: with the address sanitizer; UPDATE=1: refresh the lists of expected tests
	@$(RIG) test

.PHONY: kunit
kunit: ## the KUnit suites and doctests; FILTER=suite.test selects some
	@$(RIG) kunit

.PHONY: selftests
selftests: ## the user-space tests
	@$(RIG) selftests

.PHONY: hmm-tests
hmm-tests: ## upstream's hmm-tests on vsvm, beside the C reference
	@$(RIG) hmm-tests

.PHONY: shell
shell: ## a shell in the virtual machine with the drivers loaded
	@$(RIG) shell

.PHONY: amd
amd: ## amdgpu and KFD as they are on the emulated AMD GPU, with a test of their SVM
	@$(RIG) amd

.PHONY: amd-shell
amd-shell: ## a shell in the virtual machine with the emulated AMD GPU
	@$(RIG) amd-shell

.PHONY: kfdtest
kfdtest: ## AMD's tests of SVM on two emulated GPUs; FILTER=, RUNS=n: as often, with equal results; SVM=c
	@$(RIG) kfdtest

.PHONY: lint
lint: ## rustfmt, clippy, rustdoc, checkpatch, on the project's files only
	@$(RIG) lint

.PHONY: docs
docs: ## rustdoc of the kernel crate and the project's pages, as HTML
	@$(RIG) docs

.PHONY: apply
apply: ## KDIR=/path/to/linux: lay the overlay on a 7.3 tree of your own
	@$(RIG) apply

.PHONY: series
series: ## the overlay as a series of patches for `git am`; CHECK=1: build after each
	@$(RIG) series

.PHONY: prepare
prepare: ## build root, kernel source, test kernel and test programs, without a boot
	@$(RIG) prepare

.PHONY: clean
clean: ## remove what was built, keep the build root and the kernel source
	@$(RIG) clean

.PHONY: distclean
distclean: ## remove everything in the cache folder
	@$(RIG) distclean

# What the project's checks run: test, then lint.
.PHONY: ci
ci:
	@$(RIG) ci
