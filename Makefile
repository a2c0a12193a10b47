# make            builds build/ngx_amesh_module.so for the nginx that is installed
# make run        builds it and starts a demo mesh
# make test       passes every suite
# make yard       real istiod, captured traffic, judged by what real Envoy answered
# make bench      beside stock nginx and Envoy
# make install    DESTDIR=… the module and the snippets
#
# Another nginx or OpenResty: make NGINX_SOURCE_DIR=… NGINX_BUILD_DIR=…

BUILD   := build
PROFILE ?= release
CARGO   ?= cargo
PYTHON  ?= python3

ifdef NGINX_SOURCE_DIR
NGINX_BUILD_DIR ?= $(NGINX_SOURCE_DIR)/objs
TREE :=
else
NGINX_SOURCE_DIR := $(CURDIR)/$(BUILD)/nginx
NGINX_BUILD_DIR  := $(CURDIR)/$(BUILD)/nginx/objs
TREE := tree
endif

VENDORED := $(CURDIR)/$(BUILD)/nginx-1.28
MODULES_PATH ?= $(shell nginx -V 2>&1 | sed -n 's/.*--modules-path=\([^ ]*\).*/\1/p')
STREAM := $(wildcard /usr/lib/nginx/modules/ngx_stream_module.so)

export NGINX_SOURCE_DIR NGINX_BUILD_DIR

.PHONY: all deps tree module test lint unit loom suites suites-vendored processes run yard bench install clean

all: deps
	$(MAKE) module PROFILE=release

deps:
	@.ci/deps

tree:
	@.ci/nginx-tree debian $(BUILD)/nginx

module: $(TREE)
	$(CARGO) build -q -p ngx_amesh_module --profile $(PROFILE) --target-dir target
	@mkdir -p $(BUILD)
	install -m 644 target/$(PROFILE)/libngx_amesh_module.so $(BUILD)/ngx_amesh_module.so

# The same source for the nginx that the nginx-src crate carries.
vendored:
	@.ci/nginx-tree vendored $(BUILD)/nginx-1.28
	NGINX_SOURCE_DIR=$(VENDORED) NGINX_BUILD_DIR=$(VENDORED)/objs \
	$(CARGO) build -q -p ngx_amesh_module --profile $(PROFILE) --target-dir target/1.28
	install -m 644 target/1.28/$(PROFILE)/libngx_amesh_module.so $(BUILD)/ngx_amesh_module-1.28.so

test: deps lint unit loom suites suites-vendored processes

lint: $(TREE)
	$(CARGO) fmt --all --check
	$(CARGO) clippy -q --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny -L error check; \
	 else echo "cargo-deny is not installed: licences and advisories were not checked"; fi

unit:
	$(CARGO) test

loom:
	RUSTFLAGS="--cfg loom" $(CARGO) test -p amesh-shm --test loom --release --target-dir target/loom

suites:
	$(MAKE) module PROFILE=test-module
	TEST_NGINX_LOAD_MODULES="$(STREAM) $(CURDIR)/$(BUILD)/ngx_amesh_module.so" prove -It/lib t/*.t

suites-vendored:
	$(MAKE) vendored PROFILE=test-module
	TEST_NGINX_BINARY=$(VENDORED)/objs/nginx \
	TEST_NGINX_LOAD_MODULES="$(CURDIR)/$(BUILD)/ngx_amesh_module-1.28.so" prove -It/lib t/*.t

# What needs processes, signals, namespaces or control planes.
processes: $(BUILD)/venv/.done
	$(BUILD)/venv/bin/pytest -q t

$(BUILD)/venv/.done: t/requirements.txt
	$(PYTHON) -m venv $(BUILD)/venv
	$(BUILD)/venv/bin/pip install -q --disable-pip-version-check -r t/requirements.txt
	touch $@

run: deps
	@[ -f $(BUILD)/ngx_amesh_module.so ] || $(MAKE) module PROFILE=test-module
	@nginx-conf/demo/run.sh

yard:
	@[ -f $(BUILD)/ngx_amesh_module.so ] || $(MAKE) module PROFILE=test-module
	t/istio/run

bench: deps
	$(MAKE) module PROFILE=release
	benches/run

install:
	@[ -f $(BUILD)/ngx_amesh_module.so ] || $(MAKE) all
	install -d $(DESTDIR)$(MODULES_PATH) $(DESTDIR)/etc/nginx/amesh
	install -m 644 $(BUILD)/ngx_amesh_module.so $(DESTDIR)$(MODULES_PATH)/
	install -m 644 nginx-conf/amesh/*.conf $(DESTDIR)/etc/nginx/amesh/

clean:
	rm -rf $(BUILD) target t/servroot*
