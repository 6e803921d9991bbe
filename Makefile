# SPDX-License-Identifier: GPL-2.0
#
# Each target is a command of tools/testing/gpusvm/run.sh, which prepares what it needs.

RIG := tools/testing/gpusvm/run.sh
export FILTER UPDATE KASAN ARCH MIRROR GPUSVM_CACHE

.PHONY: help
help: ## this list
	@echo "Targets:"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1:\2/p' $(MAKEFILE_LIST) | awk -F: '{ printf "%-16s %s\n", $$1, $$2 }'

.PHONY: test
test: ## every test; KASAN=1: with the address sanitizer; UPDATE=1: refresh the lists of expected tests
	@$(RIG) test

.PHONY: kunit
kunit: ## the KUnit suites and doctests; FILTER=suite.test selects some
	@$(RIG) kunit

.PHONY: shell
shell: ## a shell in the virtual machine with the drivers loaded
	@$(RIG) shell

.PHONY: prepare
prepare: ## the build root, the kernel source, the test kernel and the test programs
	@$(RIG) prepare
